"""What a plan says of time and cost, and which images a run's summary names."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date

import pytest

from segpipe import storage
from segpipe.labeling.estimate import Estimate, Rate, Workers, cost, estimate, last_rate
from segpipe.labeling.items import Legs, Threads
from segpipe.labeling.totals import WorstImage, _worst, to_metadata
from segpipe.manifests.run_files import record_uri
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part

ALONE = Workers("local", None)


@pytest.fixture
def label(storage_root: str, make_row: Callable[..., Row]) -> Callable[..., None]:
    """Commits a part of so many images that took so many seconds."""

    def commit(day: int, run_id: str, shard: int, images: int, seconds: float) -> None:
        rows = [make_row(image_uri=f"/{run_id}/{shard}/{number}") for number in range(images)]
        metadata = to_metadata(seconds, Legs(), Threads(1, 1), None)
        table = rows_table(rows, ["a", "b"], metadata)
        assert commit_part(storage_root, date(2026, 11, day), run_id, shard, table)

    return commit


def test_without_a_past_run_nothing_is_known(storage_root: str) -> None:
    assert estimate(storage_root, "m" * 12, 100, 5.0, ALONE) == Estimate(*[None] * 2, (), *[None] * 4)


def test_the_rate_is_that_of_the_newest_days_largest_run(
    storage_root: str, label: Callable[..., None], make_row: Callable[..., Row]
) -> None:
    label(20, "old", 0, images=50, seconds=1.0)
    label(21, "small", 0, images=1, seconds=9.0)
    label(21, "flow-7c-1", 0, images=10, seconds=2.0)
    label(21, "flow-7c-1", 1, images=20, seconds=4.0)
    model_id, shape = make_row().model_id, (make_row().image_height, make_row().image_width)
    assert last_rate(storage_root) == Rate("flow-7c-1", 5.0, model_id, (shape,) * 20)
    known = estimate(storage_root, model_id, 36_000, 1.5, ALONE)
    assert known == Estimate("flow-7c-1", False, (shape,) * 20, 5.0, 7200.0, 3.0, 1.0)
    assert estimate(storage_root, model_id, 36_000, None, ALONE).cost is None
    assert estimate(storage_root, "another-one", 36_000, None, ALONE).other_model is True


@pytest.mark.parametrize(
    ("then", "now", "rate", "times"),
    [
        ({"engine": "ray", "workers": "2"}, Workers("ray", 8), 20.0, 4.0),
        ({"engine": "ray", "workers": "8"}, Workers("ray", 2), 1.25, 0.25),
        ({"engine": "ray", "workers": "auto"}, Workers("ray", 2), 5.0, None),
        ({"engine": "ray", "workers": "2"}, Workers("ray", None), 5.0, None),
        ({"engine": "ray", "workers": "2"}, ALONE, 5.0, None),
        ({"engine": "local", "workers": "auto"}, Workers("ray", 2), 5.0, None),
        ({}, ALONE, 5.0, 1.0),  # of before there were engines
        (None, ALONE, 5.0, 1.0),
    ],
)
def test_with_other_workers_the_rate_is_so_many_times_as_high_where_both_numbers_are_known(
    storage_root: str,
    label: Callable[..., None],
    then: dict[str, str] | None,
    now: Workers,
    rate: float,
    times: float | None,
) -> None:
    label(21, "r1", 0, images=10, seconds=2.0)
    if then is not None:
        storage.put(record_uri(storage_root, "r1"), json.dumps({"settings": then}).encode())
    known = estimate(storage_root, "m" * 12, 100, 3600.0, now)
    assert (known.images_per_second, known.times_workers) == (rate, times)
    assert (known.seconds, known.cost) == (100 / rate, 100 / rate)


def test_cost_is_price_times_hours() -> None:
    assert cost(1800.0, 4.0) == 2.0
    assert cost(1800.0, None) is None


def image(number: int, decision: str, confidence: float | None) -> WorstImage:
    return WorstImage(f"/{number}", None, decision, "r", confidence, None)


def test_the_worst_are_ten_failures_and_the_ten_of_lowest_confidence() -> None:
    failed = [image(number, "failed", None) for number in range(12)]
    labelled = [image(number, "review", (number * 7 % 30) / 30) for number in range(30)]
    worst = _worst([*labelled, *failed])
    assert worst[:10] == tuple(failed[:10])
    assert [one.confidence for one in worst[10:]] == [number / 30 for number in range(10)]
    assert _worst([*worst[:15], *worst[15:]]) == worst, "parts add up to the same"
