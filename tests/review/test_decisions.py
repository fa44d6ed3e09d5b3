"""What annotations mean, where a reviewer's regions overlap, and which tasks are spare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segpipe.errors import ReviewError
from segpipe.review.brush import encode_brush
from segpipe.review.decisions import drawing, minutes_spent, refusal, review_id
from segpipe.review.label_config import label_config, require_labels
from segpipe.review.push import bare_tasks, spare_tasks

CLASSES = ("road", 'car "<&>"')


def region(rows: slice, label: str, **changes: Any) -> dict[str, Any]:
    drawn = np.zeros((4, 3), bool)
    drawn[rows] = True
    value = {"format": "rle", "rle": encode_brush(drawn), "brushlabels": [label]}
    return {"from_name": "mask", "original_height": 4, "original_width": 3, "value": value} | changes


def annotation(*regions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"id": 5, "updated_at": "2026-11-24T12:00:00Z", "result": list(regions)} | changes


def test_of_two_classes_over_a_pixel_the_last_wins_and_the_pixels_are_counted() -> None:
    drawn = drawing(annotation(region(slice(0, 3), "road"), region(slice(2, 3), CLASSES[1])), CLASSES, (4, 3))
    assert drawn.mask.tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    assert drawn.overlap_pixels == 3


def test_two_regions_of_one_class_do_not_overlap() -> None:
    twice = annotation(region(slice(0, 3), "road"), region(slice(1, 4), "road"))
    assert drawing(twice, CLASSES, (4, 3)).overlap_pixels == 0


def test_what_is_neither_skipped_nor_refused_is_a_mask() -> None:
    reject = {"from_name": "verdict", "value": {"choices": ["reject"]}}
    drawn = region(slice(0, 4), "road")
    assert refusal(annotation(drawn)) is None
    assert refusal(annotation(drawn, was_cancelled=True)) == "skipped"
    assert refusal(annotation(drawn, reject)) == "rejected"
    assert refusal(annotation()) is None


@pytest.mark.parametrize(
    "regions", [(), (region(slice(0, 0), "road"),), (region(slice(0, 1), "road", value={}),)]
)
def test_a_canvas_without_a_pixel_is_empty_whatever_lay_on_it(regions: tuple[dict[str, Any], ...]) -> None:
    assert drawing(annotation(*regions), CLASSES, (4, 3)).is_empty


def test_a_canvas_with_one_region_is_not_empty() -> None:
    assert not drawing(annotation(region(slice(0, 1), "road")), CLASSES, (4, 3)).is_empty


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (region(slice(0, 1), "tree"), r"has the labels \['tree'\]: it needs one of road, car"),
        (region(slice(0, 1), "road", original_width=4), "an image of 4x4 pixels, the draft 4x3"),
        (region(slice(0, 1), "road", value={"rle": [1, 2], "brushlabels": ["road"]}), "cannot be read"),
        (
            {"from_name": "mask", "value": {"rle": [1]}},
            r"its mask has an unexpected shape \(0.original_height",
        ),
        (region(slice(0, 1), "road", value=None), r"unexpected shape \(0.value: Input should be"),
        (region(slice(0, 1), "road", value={"rle": "x"}), r"unexpected shape \(0.value.rle"),
        ("a text", "unexpected shape"),
    ],
)
def test_a_region_that_means_nothing_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ReviewError, match=message):
        drawing(annotation(wrong), CLASSES, (4, 3))


@pytest.mark.parametrize("result", [None, "text", [7], [{"from_name": "verdict"}]])
def test_an_annotation_of_another_shape_is_refused(result: Any) -> None:
    with pytest.raises(ReviewError, match="its verdict has an unexpected shape"):
        refusal(annotation() | {"result": result})


def test_a_changed_annotation_is_another_decision() -> None:
    first = review_id("item", annotation())
    assert first == review_id("item", annotation(lead_time=9))
    others = {
        review_id("item", annotation(updated_at="2026-11-24T12:00:01Z")),
        review_id("item", annotation(id=6)),
        review_id("item", annotation(unique_id="b5")),
        review_id("item", annotation(unique_id="b6")),
        review_id("another", annotation()),
    }
    assert len(others - {first}) == 5


def test_lead_time_is_in_seconds() -> None:
    assert minutes_spent(annotation(lead_time=90)) == 1.5
    assert minutes_spent(annotation()) is None


def test_an_interface_takes_its_own_classes_and_no_others() -> None:
    require_labels(label_config(CLASSES), CLASSES, "streets")
    with pytest.raises(ReviewError, match="'streets' has other labels than the masks' classes road"):
        require_labels(label_config(CLASSES), ("road",), "streets")
    with pytest.raises(ReviewError, match="other labels"):
        require_labels("<View/>", CLASSES, "streets")


def test_of_tasks_for_one_item_the_answered_stay_or_the_first() -> None:
    def task(number: int, item: str | None, annotations: int = 0, skipped: int = 0) -> dict[str, Any]:
        data = {} if item is None else {"segpipe_item_id": item}
        return {
            "id": number, "data": data, "total_annotations": annotations, "cancelled_annotations": skipped
        }  # fmt: skip

    tasks = [
        task(1, "a"), task(2, "a"), task(3, "b"), task(4, "b", annotations=1), task(5, "b", skipped=1),
        task(6, None), task(7, None),
    ]  # fmt: skip
    assert sorted(spare_tasks(tasks)) == [2, 3]


def test_of_our_tasks_those_that_have_neither_answer_nor_draft_are_bare() -> None:
    def task(number: int, predictions: int, item: str | None = "a", **answers: int) -> dict[str, Any]:
        data = {} if item is None else {"segpipe_item_id": item}
        return {"id": number, "data": data, "total_predictions": predictions} | answers

    tasks = [
        task(1, 0), task(2, 1), task(3, 0, None), task(4, 0, total_annotations=1),
        task(5, 0, cancelled_annotations=1), task(6, 0, "b"),
    ]  # fmt: skip
    assert list(bare_tasks(tasks)) == [1, 6]
