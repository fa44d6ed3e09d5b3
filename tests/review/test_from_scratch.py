"""Masks that people draw without seeing the draft: what is sent, and what their answers are worth."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
from fake_studio import FakeStudio, fake_studio
from reviewed_output import NOON, ReviewedOutput, answer, region, rows_of

from segpipe.config import QueueSettings
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.review.agreement import draft_iou
from segpipe.review.push import bare_tasks
from segpipe.review.queue import make_queue
from segpipe.review.tasks import FROM_SCRATCH, ListedTask, answered_task, listed_task

ITEM = "0" * 32


def test_such_a_task_is_sent_without_a_draft_and_stays_beside_those_with_one(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    made.label("https://raw/a.png", drawn=True, draw_probability=0.5, from_scratch=True)
    made.label("https://raw/b.png", drawn=True, draw_probability=0.5, from_scratch=False)
    assert made.push(studio).pushed == 2
    assert made.push(studio).already_there == 2
    by_image = {task["data"]["image"]: task for task in studio.tasks.values()}
    assert by_image["https://raw/a.png"]["total_predictions"] == 0
    assert by_image["https://raw/a.png"]["data"][FROM_SCRATCH] is True
    assert by_image["https://raw/b.png"]["total_predictions"] == 1
    assert FROM_SCRATCH not in by_image["https://raw/b.png"]["data"]


def test_a_server_that_drops_the_drafts_of_a_mixed_request_is_noticed(made: ReviewedOutput) -> None:
    made.label("https://raw/a.png", from_scratch=True)
    made.label("https://raw/b.png")
    with fake_studio(drops_drafts=1) as studio:
        made.push(studio)
        assert sorted(task["total_predictions"] for task in studio.tasks.values()) == [0, 1]
        assert len(studio.tasks) == 2


def test_only_a_task_that_says_so_may_be_without_a_draft() -> None:
    tasks = [ListedTask(1, ITEM, False, False), ListedTask(2, ITEM, False, False, from_scratch=True)]
    assert list(bare_tasks(tasks)) == [1]
    for said, meant in ((True, True), (False, False), ("yes", False), (1, False), (None, False)):
        listed = listed_task({"id": 1, "data": {"segpipe_item_id": ITEM, FROM_SCRATCH: said}})
        assert listed is not None
        assert listed.from_scratch is meant
    odd = answered_task({"id": 1, "data": {"segpipe_item_id": ITEM, "image": "i"}, "annotations": []})
    assert odd is not None
    assert odd.from_scratch is False


def pulled(made: ReviewedOutput, studio: FakeStudio, *regions: Any, **values: Any) -> dict[str, Any]:
    made.label("https://raw/a.png", **({"drawn": True, "from_scratch": True} | values))
    made.push(studio)
    (number,) = studio.tasks
    studio.annotations = {number: [answer(*regions)]}
    made.pull(studio)
    (review,) = made.reviews()
    return review


def test_the_draft_is_measured_against_what_they_drew_and_blank_is_the_first_class(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    """The draft is all road; they paint the lower half as car and leave the road blank."""
    review = pulled(made, studio, region(rows_of(5, 10), "car"))
    final = rows_of(5, 10).astype(np.uint8)
    draft = np.zeros((10, 10), np.uint8)
    assert (review["verdict"], review["from_scratch"]) == ("corrected", True)
    assert review["draft_iou"] == draft_iou(draft, final, 2, "every_class") == 0.25
    assert review["draft_iou_graded"] == draft_iou(draft, final, 2, "graded")


def test_an_empty_canvas_says_that_there_is_nothing_but_the_first_class(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    assert pulled(made, studio)["verdict"] == "accepted"  # the draft is all road


def test_with_a_draft_an_empty_canvas_is_a_rejection_as_before(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    review = pulled(made, studio, from_scratch=False)
    assert (review["verdict"], review["from_scratch"]) == ("rejected", False)


def test_a_task_that_was_sent_with_its_draft_counts_as_such_whatever_the_row_says(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    made.label("https://raw/a.png", drawn=True, from_scratch=True)
    made.push(studio)
    (number,) = studio.tasks
    del studio.tasks[number]["data"][FROM_SCRATCH]
    studio.annotations = {number: [answer(region(rows_of(0, 10), "road"))]}
    made.pull(studio)
    assert [review["from_scratch"] for review in made.reviews()] == [False]


def test_what_was_drawn_comes_first_in_the_order_of_labelling_whatever_its_decision(
    storage_root: str, make_row: Callable[..., Row]
) -> None:
    drawn = {"drawn": True, "draw_probability": 0.5}
    rows = [
        make_row(image_uri="/late", decision="accepted", audit=True, labeled_at=NOON, **drawn),
        make_row(image_uri="/doubtful", decision="review", confidence=0.0, drawn=False),
        make_row(
            image_uri="/early", decision="review", confidence=0.99, from_scratch=True,
            labeled_at=NOON - timedelta(days=1), **drawn,
        ),
    ]  # fmt: skip
    assert commit_part(storage_root, date(2026, 11, 24), "r", 0, rows_table(rows, ["road", "car"]))
    first, second = (make_queue(storage_root, QueueSettings(limit=n)).items for n in (1, 2))
    assert [item.image_uri for item in first] == ["/early"]
    assert [(item.image_uri, item.from_scratch) for item in second] == [("/early", True), ("/late", False)]
    assert {item.image_uri for item in make_queue(storage_root, QueueSettings(limit=3)).items} == {
        "/early", "/late", "/doubtful",
    }  # fmt: skip
