"""What is asked of people first, within their time, and that audits cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segpipe.cli import run
from segpipe.config import QueueSettings
from segpipe.errors import RunError, StorageError
from segpipe.manifests.queues import Frame, Selection, read_selected
from segpipe.manifests.reviews import Review, append_reviews, item_id
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.review import queue as queue_module
from segpipe.review.draw import places_at_random
from segpipe.review.queue import Queue, make_queue, mixed, take_queue
from segpipe.review.queue_item import QueueItem

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
CLASSES = ("road", "car", "person")
# Confidence, shares of the pixels, class confidences.
DOUBTFUL = {
    "sure": (0.9, [0.5, 0.5, 0.0], [0.9, 0.9, None]),
    "unsure": (0.2, [0.9, 0.1, 0.0], [0.9, 0.1, None]),
    "wrong road": (0.5, [0.8, 0.0, 0.2], [0.2, None, 0.9]),
    "small person": (0.6, [0.9, 0.0, 0.1], [0.9, None, 0.1]),
}


@pytest.fixture
def output(storage_root: str, make_row: Callable[..., Row]) -> str:
    rows = [
        make_row(
            image_uri=f"/{name}", mask_sha256=name, decision="review", confidence=confidence,
            class_fractions=fractions, class_confidences=confidences,
        )
        for name, (confidence, fractions, confidences) in DOUBTFUL.items()
    ]  # fmt: skip
    rows += [
        make_row(
            image_uri=f"/audit {n}", mask_sha256=f"a{n}", audit=True, labeled_at=NOON - timedelta(days=n)
        )
        for n in range(3)
    ]
    rows.append(make_row(image_uri="/accepted", mask_sha256="accepted"))
    assert commit_part(storage_root, date(2026, 11, 24), "r", 0, rows_table(rows, CLASSES))
    return storage_root


def names(output: str, **settings: object) -> list[str]:
    items = make_queue(output, QueueSettings(**settings)).items  # type: ignore[arg-type]
    return [item.image_uri[1:] for item in items]


def doubtful(found: list[str]) -> list[str]:
    return [name for name in found if not name.startswith("audit")]


def decide(output: str, image: str, minutes: float) -> None:
    item = item_id(image, "e1", "m", image[1:])
    append_reviews(
        output,
        [
            Review(
                review_id=item, item_id=item, image_uri=image, image_etag="e1", model_id="m",
                draft_mask_sha256=image[1:], verdict="rejected", final_mask_uri=None, final_mask_sha256=None,
                draft_iou=None, overlap_pixels=0, audit=False, inclusion_probability=1.0, reviewer="a",
                minutes=minutes, reviewed_at=NOON, origin="test",
            )
        ],
    )  # fmt: skip


def test_the_least_confident_come_first(output: str) -> None:
    assert doubtful(names(output)) == ["unsure", "wrong road", "small person", "sure"]


def test_by_gain_those_with_the_most_wrong_pixels_come_first(output: str) -> None:
    # 0.8 * 0.8 + 0.2 * 0.1 = 0.66; 0.9 * 0.1 + 0.1 * 0.9 = 0.18, twice; 0.1.
    assert doubtful(names(output, order="gain")) == ["wrong road", "small person", "unsure", "sure"]


def test_by_class_those_that_show_it_and_doubt_it_come_first(output: str) -> None:
    assert doubtful(names(output, class_name="person")) == ["small person", "wrong road"]
    with pytest.raises(RunError, match=r"no class 'tree' under .*: there are road, car, person"):
        names(output, class_name="tree")


def test_open_audits_are_all_there_oldest_first_at_drawn_places(output: str) -> None:
    found = names(output)
    assert [name for name in found if name.startswith("audit")] == ["audit 2", "audit 1", "audit 0"]
    assert len(found) == 7
    assert found == names(output), "the same row for all who ask"


def test_a_budget_of_masks_or_minutes_is_kept_and_audits_have_the_first_claim(output: str) -> None:
    assert sorted(names(output, limit=4)) == ["audit 0", "audit 1", "audit 2", "unsure"]
    assert sorted(names(output, limit=2)) == ["audit 1", "audit 2"]
    assert len(names(output, minutes=9.0)) == 4, "two minutes each at first"
    decide(output, "/sure", minutes=4.5)
    queue = make_queue(output, QueueSettings(minutes=9.0))
    assert (len(queue.items), queue.waiting, queue.minutes) == (2, 6, 9.0)


def test_a_decision_takes_a_mask_off_the_queue(output: str) -> None:
    decide(output, "/unsure", minutes=1.0)
    assert doubtful(names(output)) == ["wrong road", "small person", "sure"]


def test_the_places_of_audits_say_nothing() -> None:
    def items(kind: str, n: int, seed: int) -> list[QueueItem]:
        return [
            QueueItem(f"{kind}{seed}-{number}", "", "", "", "", None, kind == "audit") for number in range(n)
        ]

    first = [0] * 10
    for seed in range(2000):
        row = mixed(items("audit", 2, seed), items("doubtful", 8, seed))
        for place, item in enumerate(row):
            first[place] += item.is_audit
    assert all(300 < count < 500 for count in first), "each place has one of five: 400 of 2000"
    assert mixed([], items("doubtful", 3, 0)) == items("doubtful", 3, 0)


def test_the_command_shows_no_audit(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["review", "list", output, "--limit", "5"]) == 0
    said = capsys.readouterr().out
    assert "5 of 7 masks, some 10 minutes" in said
    assert "True" not in said
    assert "confident" not in said.replace("confidence", "")


def many(root: str, make_row: Callable[..., Row], names: list[str], shard: int = 0) -> None:
    """Masks to review, the first the most doubtful."""
    rows = [
        make_row(
            image_uri=f"/{name}", mask_sha256=name, decision="review", confidence=place / 1000, shard=shard,
            class_fractions=[0.5, 0.5, 0.0], class_confidences=[0.5, 0.5, None], reason="low_confidence",
        )
        for place, name in enumerate(names)
    ]  # fmt: skip
    assert commit_part(root, date(2026, 11, 24), "r", shard, rows_table(rows, CLASSES))


def named(*images: str) -> list[str]:
    return [item_id(f"/{image}", "e1", "m", image) for image in images]


@pytest.fixture
def lake(tmp_path: Path, make_row: Callable[..., Row]) -> str:
    """A hundred masks to review, m00 the most doubtful."""
    many(str(tmp_path), make_row, [f"m{n:02d}" for n in range(100)])
    return str(tmp_path)


def shown(queue: Queue) -> list[str]:
    return [item.image_uri[1:] for item in queue.items]


def test_a_fifth_of_the_doubtful_is_drawn_at_random_and_the_record_says_by_which_chance(lake: str) -> None:
    queue = take_queue(lake, QueueSettings(limit=20))
    (record,) = read_selected(lake).selections.values()
    by_order = [f"m{n:02d}" for n in range(16)]
    assert [name for name in shown(queue) if name in by_order] == by_order
    drawn = set(shown(queue)) - set(by_order)
    assert set(record.drawn) == set(named(*drawn))
    assert (len(drawn), record.frames) == (4, {"m": Frame(84, 4)})
    assert record.chosen == tuple(named(*by_order))
    assert record.seen == {"r": (0,)}
    assert read_selected(lake).probability("m", 1) == pytest.approx(4 / 84)


def test_the_same_queue_for_all_who_ask_until_a_decision_comes(lake: str) -> None:
    listed = make_queue(lake, QueueSettings(limit=20))
    assert not read_selected(lake).selections, "a list leaves no record"
    pushed = take_queue(lake, QueueSettings(limit=20))
    assert take_queue(lake, QueueSettings(limit=20)) == pushed == listed
    assert len(read_selected(lake).selections) == 1
    decide(lake, "/m03", minutes=2.0)
    later = take_queue(lake, QueueSettings(limit=20))
    assert set(shown(later)) == {*shown(pushed)} - {"m03"} | {"m16"}, "drawn ones stay until they are decided"
    assert read_selected(lake).selections[2].drawn == {}


def test_who_is_chosen_by_order_does_not_depend_on_the_draws(lake: str) -> None:
    drawn = set()
    while not any(f"m{n:02d}" in drawn for n in range(16, 32)):
        queue = take_queue(lake, QueueSettings(limit=10, random_share=1.0))
        drawn |= set(shown(queue))
        for name in shown(queue):
            decide(lake, f"/{name}", minutes=2.0)
    take_queue(lake, QueueSettings(limit=40, random_share=0.2))
    chosen = read_selected(lake).chosen
    turns = [f"m{n:02d}" for n in range(100) if named(f"m{n:02d}")[0] in chosen]
    assert turns == [f"m{n:02d}" for n in range(len(turns))], "drawn and decided ones have their turn, too"
    assert len(set(turns) - drawn) == 32


def test_masks_that_came_later_had_fewer_chances(lake: str, make_row: Callable[..., Row]) -> None:
    settings = QueueSettings(limit=10, random_share=1.0)
    first = take_queue(lake, settings)
    for item in first.items:
        decide(lake, item.image_uri, minutes=2.0)
    many(lake, make_row, [f"n{n:02d}" for n in range(60)], shard=1)
    second = take_queue(lake, settings)
    record = read_selected(lake).selections[2]
    assert record.frames == {"m": Frame(150, 10)}
    assert record.seen == {"r": (1,)}
    assert record.drawn == {
        item.item_id: 1 if item.image_uri.startswith("/m") else 2 for item in second.items
    }
    assert {1, 2} == set(record.drawn.values()), "this draw has some of both"
    assert read_selected(lake).probability("m", 1) == pytest.approx(1 - 0.9 * 14 / 15)
    assert read_selected(lake).probability("m", 2) == pytest.approx(1 / 15)


def test_none_or_all_at_random(lake: str) -> None:
    by_order = make_queue(lake, QueueSettings(limit=10, random_share=0.0))
    assert shown(by_order) == [f"m{n:02d}" for n in range(10)]
    take_queue(lake, QueueSettings(limit=10, random_share=0.0))
    assert read_selected(lake).draws == {}
    take_queue(lake, QueueSettings(limit=10, random_share=1.0))
    selected = read_selected(lake)
    assert len(selected.draws) == 10
    assert selected.selections[2].frames == {"m": Frame(90, 10)}, "the ten chosen before are out of the draw"


def test_draws_are_blind_to_class_and_order(output: str) -> None:
    queue = make_queue(output, QueueSettings(limit=6, random_share=0.34, class_name="car"))
    assert len(doubtful(shown(queue))) == 3
    assert {"sure", "unsure"} < set(shown(queue)), "both show a car; the third is of those that do not"


def test_each_mask_is_as_likely_to_be_drawn(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    times = np.zeros(8, int)
    for seed in range(6):
        root = str(tmp_path / str(seed))
        many(root, make_row, [f"{seed} {place}" for place in range(40)])
        for name in shown(make_queue(root, QueueSettings(limit=10, random_share=1.0))):
            times[int(name.split()[1]) // 5] += 1
    assert times.sum() == 60
    assert stats.chisquare(times).pvalue > 0.001


def test_two_pushes_at_once_draw_once(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, add = QueueSettings(limit=20), queue_module.add_selection
    others: list[Queue] = []

    def late(output: str, number: int, selection: Selection) -> None:
        monkeypatch.setattr(queue_module, "add_selection", add)
        others.append(take_queue(output, settings))  # the other push comes first
        add(output, number, selection)

    monkeypatch.setattr(queue_module, "add_selection", late)
    assert take_queue(lake, settings) == others[0]
    assert len(read_selected(lake).selections) == 1


def test_a_record_that_cannot_be_read_is_one_clear_line(lake: str) -> None:
    take_queue(lake, QueueSettings(limit=20))
    record = Path(lake, "queues/00000001.json")
    whole = record.read_text()
    for content, reason in (
        ("{", "is not JSON"),
        ("[]", "does not hold a JSON object"),
        (
            whole.replace('"schema_version": 1', '"schema_version": 7'),
            "has schema version 7, this segpipe reads 1",
        ),
        (whole.replace('"drawn": 4', '"drawn": 85'), "85 masks drawn of 84"),
        (whole.replace('"drawn": 4', '"drawn": -1'), "is damaged"),
    ):
        record.write_text(content)
        with pytest.raises(StorageError, match=rf"00000001.json .*{reason}.*: restore it; without it nobody"):
            make_queue(lake, QueueSettings())


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1))
def test_places_at_random(room: int, matching: int, share: float) -> None:
    places = places_at_random(room, matching, share)
    assert 0 <= places <= room
    if share < 1 and matching <= room:
        assert places <= room - matching, "whatever fits is shown"
        assert abs(places - min(room - matching, share * (matching + places))) <= 1 / (1 - share)
    else:
        assert places == pytest.approx(share * room, abs=0.5)
