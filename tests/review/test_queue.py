"""What is asked of people first, within their time, and that audits cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest

from segpipe.cli import run
from segpipe.config import QueueSettings
from segpipe.errors import RunError
from segpipe.manifests.reviews import Review, append_reviews, item_id
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.review.queue import QueueItem, make_queue, mixed

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
