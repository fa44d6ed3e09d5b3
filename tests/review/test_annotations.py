"""What annotations mean, where a reviewer's regions overlap, what is refused, and which tasks are spare."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.errors import ReviewError
from segpipe.review.annotations import (
    MAX_REGIONS,
    Annotation,
    Drawing,
    drawing,
    read_annotation,
    refusal,
    review_id,
)
from segpipe.review.brush import encode_brush
from segpipe.review.label_config import label_config, require_labels
from segpipe.review.push import bare_tasks, spare_tasks
from segpipe.review.tasks import answered_task, listed_task, listed_tasks

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
CLASSES = ("road", 'car "<&>"')
REJECT = {"from_name": "verdict", "value": {"choices": ["reject"]}}


def region(rows: slice, label: str, **changes: Any) -> dict[str, Any]:
    drawn = np.zeros((4, 3), bool)
    drawn[rows] = True
    value = {"format": "rle", "rle": encode_brush(drawn), "brushlabels": [label]}
    return {"from_name": "mask", "original_height": 4, "original_width": 3, "value": value} | changes


def exported(*regions: object, **changes: Any) -> dict[str, Any]:
    """As the JSON export has it."""
    return {"id": 5, "updated_at": "2026-11-24T12:00:00Z", "result": list(regions)} | changes


def annotation(*regions: object, **changes: Any) -> Annotation:
    return read_annotation(exported(*regions, **changes), NOON)


def drawn_on(canvas: Annotation) -> Drawing:
    return drawing(canvas, CLASSES, (4, 3))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in exported().items() if key != name}


def test_of_two_classes_over_a_pixel_the_last_wins_and_the_pixels_are_counted() -> None:
    drawn = drawn_on(annotation(region(slice(0, 3), "road"), region(slice(2, 3), CLASSES[1])))
    assert drawn.mask.tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    assert drawn.overlap_pixels == 3


def test_two_regions_of_one_class_do_not_overlap() -> None:
    twice = annotation(region(slice(0, 3), "road"), region(slice(1, 4), "road"))
    assert drawn_on(twice).overlap_pixels == 0


def test_what_is_neither_skipped_nor_refused_is_a_mask() -> None:
    drawn = region(slice(0, 4), "road")
    assert refusal(annotation(drawn)) is None
    assert refusal(annotation(drawn, was_cancelled=True)) == "skipped"
    assert refusal(annotation(result=None, was_cancelled=True)) == "skipped"
    assert refusal(annotation(drawn, REJECT)) == "rejected"
    assert refusal(annotation()) is None


@pytest.mark.parametrize("regions", [(), (region(slice(0, 0), "road"),)])
def test_a_canvas_without_a_pixel_is_empty_whatever_lay_on_it(regions: tuple[dict[str, Any], ...]) -> None:
    assert drawn_on(annotation(*regions)).is_empty


def test_a_canvas_with_one_region_is_not_empty() -> None:
    assert not drawn_on(annotation(region(slice(0, 1), "road"))).is_empty


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
        (region(slice(0, 1), "road", value={"brushlabels": ["road"]}), r"\(0.value.rle: Field required"),
        (region(slice(0, 1), "road", value={"rle": None}), r"unexpected shape \(0.value.rle"),
        (region(slice(0, 1), "road", value={"rle": []}), r"unexpected shape \(0.value.rle"),
        (region(slice(0, 1), "road", value={"rle": [256]}), r"unexpected shape \(0.value.rle.0"),
        (region(slice(0, 1), "road", value={"rle": [float("nan")]}), r"unexpected shape \(0.value.rle.0"),
        (region(slice(0, 1), "road", value={"format": "png", "rle": [1]}), r"\(0.value.format"),
        (region(slice(0, 1), "road", original_height=-4), r"\(0.original_height"),
        (region(slice(0, 1), "road", original_height=10**30), r"\(0.original_height"),
        (region(slice(0, 1), "road", image_rotation=90), r"\(0.image_rotation"),
        (region(slice(0, 1), "road", from_name="other", type="brushlabels"), "with the labels 'mask' of"),
        ({"from_name": "box", "type": "rectanglelabels", "value": {"x": 1}}, "draw it with the brush"),
        ({"type": "brush", "value": {"rle": [1]}}, "draw it with the brush"),
    ],
)
def test_a_region_that_means_nothing_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ReviewError, match=message):
        drawn_on(annotation(wrong))


def test_a_region_with_two_labels_or_none_is_refused() -> None:
    for labels in ([], ["road", CLASSES[1]], ["road"] * 2):
        value = {"format": "rle", "rle": encode_brush(np.ones((4, 3), bool)), "brushlabels": labels}
        with pytest.raises(ReviewError, match="it needs one of road, car"):
            drawn_on(annotation(region(slice(0, 1), "road", value=value)))


def test_what_other_controls_of_the_interface_say_is_left_alone() -> None:
    comment = {"from_name": "remark", "type": "textarea", "value": {"text": ["look"]}}
    assert not drawn_on(annotation(region(slice(0, 4), "road"), comment, {"type": "relation"})).is_empty


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "the annotation has an unexpected shape"),
        ("text", "the annotation has an unexpected shape"),
        (without("id"), r"unexpected shape \(id: Field required\); submit it again"),
        (exported(id=-1), r"\(id: "),
        (exported(id="x5"), r"\(id: "),
        (exported(id=2**70), r"\(id: "),
        (without("result"), "has no result: submit it again"),
        (exported(result=None), "has no result"),
        (exported(result="text"), r"\(result: "),
        (exported(7), r"\(result.0: "),
        (exported("a text"), r"\(result.0: "),
        (exported(result=[{}] * (MAX_REGIONS + 1)), r"\(result: List should have at most 1000"),
        (without("updated_at"), r"\(updated_at: Field required\)"),
        (exported(updated_at=5), r"\(updated_at: "),
        (exported(updated_at="1764000000"), "'1764000000' is no ISO 8601 time"),
        (exported(updated_at="yesterday"), "is no ISO 8601 time"),
        (exported(updated_at="2026-11-24T12:00:00"), "has no time zone"),
        (exported(updated_at="2026-11-24T13:00:01Z"), "cannot be, it is 2026-11-24 12:00 UTC"),
        (exported(updated_at="9999-12-31T23:59:59Z"), "cannot be"),
        (exported(updated_at="0001-01-01T00:00:00+14:00"), "cannot be"),
        (exported(updated_at="9999-12-31T23:59:59-14:00"), "cannot be"),
        (exported(updated_at="x" * 2000), r"\(updated_at: "),
        (exported(lead_time="long"), r"\(lead_time: "),
        (exported(lead_time=-1), r"\(lead_time: "),
        (exported(lead_time=1e300), r"\(lead_time: "),
        (exported(lead_time=float("nan")), r"\(lead_time: "),
        (exported(lead_time=float("inf")), r"\(lead_time: "),
        (exported(was_cancelled="perhaps"), r"\(was_cancelled: "),
        (exported(unique_id={"a": 1}), r"\(unique_id"),
        (exported(unique_id="\ud800"), r"\(unique_id"),
        (exported(completed_by=[1]), r"\(completed_by"),
    ],
)
def test_an_annotation_that_says_nothing_usable_is_refused_with_its_reason(found: Any, message: str) -> None:
    with pytest.raises(ReviewError, match=message) as refused:
        read_annotation(found, NOON)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("choices", [{}, {"value": {"choices": "reject"}}, {"value": {"choices": [7]}}])
def test_a_verdict_of_another_shape_is_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(ReviewError, match="its verdict has an unexpected shape"):
        refusal(annotation({"from_name": "verdict"} | choices))


def test_numbers_may_come_as_texts_and_a_clock_may_be_an_hour_ahead() -> None:
    found = annotation(id="5", lead_time="90", updated_at="2026-11-24T14:00:00+01:00")
    assert (found.number, found.name, found.minutes) == (5, "5", 1.5)
    assert found.decided_at == datetime(2026, 11, 24, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    ("author", "read"), [(1, 1), (None, None), ("a@b.c", "a@b.c"), ({"id": 1, "email": "a@b.c"}, "a@b.c")]
)
def test_an_author_is_a_number_or_an_address(author: Any, read: Any) -> None:
    assert annotation(completed_by=author).author == read


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
NAMES = ["mask", "verdict", "box"]
PART = st.fixed_dictionaries(
    {},
    optional={
        "from_name": st.sampled_from(NAMES) | ANYTHING,
        "type": st.sampled_from(["brushlabels", "choices"]) | ANYTHING,
        "original_height": st.just(4) | ANYTHING,
        "original_width": st.just(3) | ANYTHING,
        "image_rotation": st.just(0) | ANYTHING,
        "value": ANYTHING
        | st.fixed_dictionaries(
            {},
            optional={
                "format": st.just("rle") | ANYTHING,
                "rle": ANYTHING
                | st.lists(st.integers(-1, 256), max_size=40)
                | st.just(encode_brush(np.eye(4, 3, dtype=bool))),
                "brushlabels": st.just(["road"]) | ANYTHING,
                "choices": st.just(["reject"]) | ANYTHING,
            },
        ),
    },
)
ANSWER = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(0, 9) | ANYTHING,
        "unique_id": st.text(max_size=5) | ANYTHING,
        "updated_at": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat) | ANYTHING,
        "completed_by": ANYTHING,
        "lead_time": st.floats(0, 100) | ANYTHING,
        "was_cancelled": st.booleans() | ANYTHING,
        "result": st.lists(PART, max_size=3) | ANYTHING,
    },
)


def outcome_of(found: object) -> str:
    """What pull would make of it, short of storage."""
    try:
        read = read_annotation(found, NOON)
        assert len(review_id("item", read)) == 32
        verdict = refusal(read)
        return verdict or ("empty" if drawn_on(read).is_empty else "drawn")
    except ReviewError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"


@given(ANSWER | ANYTHING)
def test_whatever_an_answer_holds_it_is_read_or_refused_in_one_line(found: object) -> None:
    assert outcome_of(found) in ("skipped", "rejected", "empty", "drawn", "refused")


@given(ANYTHING | st.fixed_dictionaries({"id": ANYTHING, "data": ANYTHING, "annotations": ANYTHING}))
def test_whatever_a_task_holds_it_is_read_or_left_out(found: object) -> None:
    for task in (listed_task(found), answered_task(found)):
        assert task is None or task.number >= 0


def test_a_task_of_others_has_no_item() -> None:
    def read(**data: object) -> tuple[str | None, str | None]:
        task = answered_task({"id": "7", "data": data, "annotations": [{}]})
        assert task is not None
        assert task.number == 7
        return task.item, task.image_uri

    item = "0123456789abcdef" * 2
    assert read(segpipe_item_id=item, image="s3://raw/a.png") == (item, "s3://raw/a.png")
    for odd in ("../../x", item + "\n", 7, None, item.upper()):
        assert read(segpipe_item_id=odd, image="s3://raw/a.png") == (None, None)
    assert read(segpipe_item_id=item) == (None, None)


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
    assert annotation(lead_time=90).minutes == 1.5
    assert annotation().minutes is None


def test_an_interface_takes_its_own_classes_and_no_others() -> None:
    require_labels(label_config(CLASSES), CLASSES, "streets")
    with pytest.raises(ReviewError, match="'streets' has other labels than the masks' classes road"):
        require_labels(label_config(CLASSES), ("road",), "streets")
    with pytest.raises(ReviewError, match="other labels"):
        require_labels("<View/>", CLASSES, "streets")


@pytest.mark.parametrize(
    "name", ["", " ", "a\x00b", "a\x1b[2J", "two\nlines", "$image", "us$price", "\ud800"]
)
def test_a_class_that_would_come_back_under_another_name_is_refused(name: str) -> None:
    with pytest.raises(ReviewError, match="cannot be a label in Label Studio") as refused:
        label_config(("road", name))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["<b>x</b>", "a & b", '"', "100 $", "\N{ZERO WIDTH JOINER}", "<!--", "]]>"])
def test_markup_in_a_class_is_text(name: str) -> None:
    require_labels(label_config(("road", name)), ("road", name), "streets")


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
    assert sorted(spare_tasks(listed_tasks(tasks))) == [2, 3]


def test_a_server_that_does_not_say_whether_there_is_a_draft_may_have_it() -> None:
    assert list(bare_tasks(listed_tasks([{"id": 1, "data": {"segpipe_item_id": "a"}}, {}, None, "x"]))) == []


def test_of_our_tasks_those_that_have_neither_answer_nor_draft_are_bare() -> None:
    def task(number: int, predictions: int, item: str | None = "a", **answers: int) -> dict[str, Any]:
        data = {} if item is None else {"segpipe_item_id": item}
        return {"id": number, "data": data, "total_predictions": predictions} | answers

    tasks = [
        task(1, 0), task(2, 1), task(3, 0, None), task(4, 0, total_annotations=1),
        task(5, 0, cancelled_annotations=1), task(6, 0, "b"),
    ]  # fmt: skip
    assert list(bare_tasks(listed_tasks(tasks))) == [1, 6]
