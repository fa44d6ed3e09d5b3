"""What becomes of people's answers, and of those that are none; the server is one of the test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_studio import FakeStudio, fake_studio
from reviewed_output import CLASSES, NOON, ReviewedOutput, answer, region, rows_of

from segpipe import storage
from segpipe.cli import run
from segpipe.images import decode_mask
from segpipe.review.brush import encode_brush

ROAD = region(rows_of(0, 10), "road")
CAR_BELOW = region(rows_of(5, 10), "car")
DEEP = "[" * 100_000 + "]" * 100_000


def asked(made: ReviewedOutput, studio: FakeStudio, n: int) -> list[int]:
    """The numbers of n tasks, each about an image of its own, by the image's number."""
    made.label(*(f"https://raw/{number:02d}.png" for number in range(n)))
    made.push(studio)
    images = {task["data"]["image"]: number for number, task in studio.tasks.items()}
    return [images[image] for image in sorted(images)]


def counts(summary: object) -> dict[str, int]:
    return {name: count for name, count in vars(summary).items() if isinstance(count, int) and count}


def test_what_people_say_becomes_reviews(made: ReviewedOutput, studio: FakeStudio) -> None:
    left, drawn, refused, put_off = asked(made, studio, 4)
    reject = {"from_name": "verdict", "type": "choices", "value": {"choices": ["reject"]}}
    studio.annotations = {
        left: [answer(*studio.drafts[left])],
        drawn: [answer(ROAD, CAR_BELOW)],
        refused: [answer(reject)],
        put_off: [answer(result=None, was_cancelled=True)],
    }
    summary = made.pull(studio)
    assert counts(summary) == {
        "accepted": 1, "corrected": 1, "rejected": 1, "skipped": 1, "overlap_pixels": 50
    }  # fmt: skip
    assert summary.refusals == {}
    by_verdict = {one["verdict"]: one for one in made.reviews()}
    corrected = by_verdict["corrected"]
    final = decode_mask(storage.read_bytes(corrected["final_mask_uri"]))
    assert (final == np.repeat([0, 1], 50).reshape(10, 10)).all()
    assert corrected["draft_iou"] == (50 / 100 + 0) / 2, "of road a half, of car nothing"
    assert (corrected["reviewer"], corrected["minutes"]) == ("reviewer@example.com", 1.0)
    assert corrected["reviewed_at"] == NOON
    counted = [
        by_verdict[one]["final_class_pixels"] for one in ("accepted", "corrected", "rejected", "skipped")
    ]
    assert counted == [[100, 0], [50, 50], None, None]
    assert counts(made.pull(studio)) == {"known": 4}


ODD: dict[str, Any] = {
    "no time": {name: value for name, value in answer(ROAD).items() if name != "updated_at"},
    "no result": {name: value for name, value in answer(ROAD).items() if name != "result"},
    "year 9999": answer(ROAD, updated_at="9999-01-01T00:00:00Z"),
    "time in words": answer(ROAD, lead_time="a while"),
    "negative time": answer(ROAD, lead_time=-3),
    "endless time": answer(ROAD, lead_time=1e400),
    "not a number": answer(ROAD, lead_time=float("nan")),
    "a region without a mask": answer(ROAD | {"value": {"format": "rle", "brushlabels": ["road"]}}),
    "another format": answer(ROAD | {"value": ROAD["value"] | {"format": "png"}}),
    "garbage": answer(ROAD | {"value": ROAD["value"] | {"rle": [1, 2, 3]}}),
    "a mask of another size": answer(
        ROAD | {"value": ROAD["value"] | {"rle": encode_brush(np.ones((9, 9), bool))}}
    ),
    "an image of another size": answer(region(np.ones((9, 9), bool), "road")),
    "an unknown class": answer(region(rows_of(0, 9), "tree")),
    "another tool": answer({"type": "polygonlabels", "from_name": "shape", "value": {"points": []}}),
    "no annotation": "text",
    "nothing": None,
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_is_named_and_the_others_come(
    odd: str, made: ReviewedOutput, studio: FakeStudio, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = asked(made, studio, 3)
    studio.annotations = {number: [answer(ROAD)] for number in (first, third)}
    studio.annotations[second] = [ODD[odd]]
    summary = made.pull(studio)
    assert counts(summary) == {"accepted": 2, "refused": 1}
    ((where, refusal),) = summary.refusals.items()
    assert where.startswith(f"{studio.url}/tasks/{second}/annotations/")
    assert (refusal.project, refusal.task) == ("streets", second)
    assert f"{where} is not taken: {refusal.reason}" in caplog.text

    studio.annotations[second] = [answer(ROAD, CAR_BELOW)]
    assert counts(made.pull(studio)) == {"corrected": 1, "known": 2, "overlap_pixels": 50}, "mended, it comes"


@pytest.mark.parametrize(
    "text",
    [f"[{DEEP}]", f'[{{"id": 1, "result": {DEEP}}}]', "[1e99999]", f"[{'9' * 5000}]", "{}", "7", "null"],
)
def test_a_task_that_cannot_be_read_keeps_no_other_back(
    text: str, made: ReviewedOutput, studio: FakeStudio
) -> None:
    numbers = asked(made, studio, 7)
    studio.annotations = {number: [answer(ROAD)] for number in numbers}
    studio.annotations[numbers[3]] = text
    summary = made.pull(studio)
    assert counts(summary) == {"accepted": 6, "refused": 1}
    (refusal,) = summary.refusals.values()
    assert refusal.task == numbers[3]
    assert len(refusal.reason) <= 300


@pytest.mark.parametrize("row", ['{"data": {}}', "null", '{"id": "x"}', f'{{"id": 3, "data": {DEEP}}}'])
def test_a_row_of_the_list_that_cannot_be_read_keeps_no_other_back(
    row: str, made: ReviewedOutput, studio: FakeStudio
) -> None:
    numbers = asked(made, studio, 5)
    studio.annotations = {number: [answer(ROAD)] for number in numbers}
    studio.rows = {numbers[2]: row}
    summary = made.pull(studio)
    assert counts(summary) == {"accepted": 4, "refused": 1}
    (refusal,) = summary.refusals.values()
    assert "1 tasks in its list have no number, or cannot be read" in refusal.reason
    assert made.push(studio).already_there == 0
    studio.rows = {}
    assert counts(made.pull(studio)) == {"accepted": 1, "known": 4}


def test_of_two_annotations_the_later_one_holds_and_an_odd_one_takes_nothing_from_it(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    twice, one_odd = asked(made, studio, 2)
    later = NOON + timedelta(microseconds=1)
    studio.annotations = {
        twice: [answer(ROAD, CAR_BELOW, id=8, updated_at=later.isoformat()), answer(ROAD, id=7)],
        one_odd: [answer(id=9, result=None), answer(ROAD, id=10)],
    }
    assert counts(made.pull(studio)) == {
        "corrected": 1, "accepted": 2, "refused": 1, "overlap_pixels": 50
    }  # fmt: skip
    assert [one["verdict"] for one in made.reviews()] == ["corrected", "accepted"]


def test_texts_in_place_of_numbers_are_the_same_decision(made: ReviewedOutput, studio: FakeStudio) -> None:
    (number,) = asked(made, studio, 1)
    studio.annotations = {number: [answer(ROAD, id=5)]}
    assert counts(made.pull(studio)) == {"accepted": 1}
    studio.annotations = {number: [answer(ROAD, id="5", lead_time="60")]}
    assert counts(made.pull(studio)) == {"known": 1}


@pytest.mark.parametrize("image", ["https://raw/00.png'; DROP", "\x00", "\ud800", 7, None, "x" * 20_000])
def test_a_task_whose_image_somebody_has_changed_is_of_others(
    image: Any, made: ReviewedOutput, studio: FakeStudio
) -> None:
    changed, whole = asked(made, studio, 2)
    studio.tasks[changed]["data"]["image"] = image
    studio.annotations = {number: [answer(ROAD)] for number in (changed, whole)}
    assert counts(made.pull(studio)) == {"accepted": 1, "foreign": 1}


def test_what_was_erased_counts_as_wrong_in_the_draft(made: ReviewedOutput, studio: FakeStudio) -> None:
    # Seventy of a hundred pixels are wrong: erased or repainted, a person says the same of the draft.
    erased, repainted = asked(made, studio, 2)
    studio.annotations = {
        erased: [answer(region(rows_of(0, 3), "road"))],
        repainted: [answer(region(rows_of(0, 3), "road"), region(rows_of(3, 10), "car"))],
    }
    made.pull(studio)
    assert [one["draft_iou"] for one in made.reviews()] == [30 / 100, (30 / 100 + 0) / 2]
    final = decode_mask(storage.read_bytes(made.reviews()[0]["final_mask_uri"]))
    assert (final[3:] == 255).all(), "which training ignores"


def test_a_mask_stands_for_the_classes_of_its_own_model(
    made: ReviewedOutput, studio: FakeStudio, tmp_path: Path
) -> None:
    (number,) = asked(made, studio, 1)
    studio.annotations = {number: [answer(ROAD, CAR_BELOW)]}
    made.label("https://raw/new.png", classes=("car", "road"), model_id="newer")
    assert counts(made.pull(studio)) == {"corrected": 1, "overlap_pixels": 50}
    final = decode_mask(storage.read_bytes(made.reviews()[0]["final_mask_uri"]))
    assert (final[5:] == CLASSES.index("car")).all()


def test_a_draft_with_a_class_of_none_is_named(made: ReviewedOutput, studio: FakeStudio) -> None:
    good, gone = asked(made, studio, 2)
    studio.annotations = {number: [answer(ROAD)] for number in (good, gone)}
    storage.delete(made.masks["https://raw/01.png"])
    summary = made.pull(studio)
    assert counts(summary) == {"accepted": 1, "refused": 1}
    assert "is not there any more: restore it" in next(iter(summary.refusals.values())).reason


def test_the_command_names_what_it_left_out(
    made: ReviewedOutput,
    studio: FakeStudio,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")
    (number,) = asked(made, studio, 1)
    studio.annotations = {number: [answer(region(rows_of(0, 9), "\x1b[2Jtree"))]}
    command = ["review", "pull", made.root, "--label-studio", studio.url, "--project", "streets"]
    for json in ([], ["--json"]):
        assert run([*command, *json]) == 0
        said = capsys.readouterr()
        for text in (said.out, said.err):
            assert f"{studio.url}/tasks/{number}/annotations/1" in text
            assert "it needs one of road, car" in text
            assert "\x1b" not in text


def test_an_answer_that_holds_thousands_of_errors_is_refused_at_the_first(
    made: ReviewedOutput, studio: FakeStudio
) -> None:
    (number,) = asked(made, studio, 1)
    studio.annotations = {number: [answer(ROAD | {"value": ROAD["value"] | {"rle": ["x"] * 200_000}})]}
    (refusal,) = made.pull(studio).refusals.values()
    assert refusal.reason.startswith("its mask has an unexpected shape (0.value.rle.0: ")


@pytest.mark.parametrize("users", [b"{}", b"[]", b'[null, {"id": []}, {"id": 1}, {"email": "x"}]'])
def test_whoever_the_server_says_there_is(
    users: bytes, made: ReviewedOutput, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    (number,) = asked(made, studio, 1)
    studio.annotations = {number: [answer(ROAD, completed_by=2)]}
    studio.users = users
    if users == b"{}":
        with pytest.raises(Exception, match=r"is no Label Studio, by its answer to /api/users/"):
            made.pull(studio)
    else:
        assert counts(made.pull(studio)) == {"accepted": 1}
        assert made.reviews()[0]["reviewer"] == "2"


class KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_a_pull_is_finished_by_the_next(
    after: bool, tmp_path: Path, row_defaults: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = None
    for survived in range(9):
        made = ReviewedOutput(str(tmp_path / f"labels-{survived}"), row_defaults)
        with fake_studio() as studio:
            numbers = asked(made, studio, 4)
            studio.annotations = {number: [answer(ROAD, CAR_BELOW)] for number in numbers[:3]}
            studio.annotations[numbers[3]] = [answer(ROAD)]
            with monkeypatch.context() as patched:
                writes = killing(patched, survived, after=after)
                with suppress(KilledError):
                    made.pull(studio)
            made.pull(studio)
            state = end_state(made)
        expected = expected or state
        assert state == expected
        if len(writes) <= survived:
            break
    assert len(writes) == 4, "three masks and one part: all were tried"


def killing(patched: pytest.MonkeyPatch, survived: int, *, after: bool) -> list[str]:
    """Let so many writes happen, and kill before or after the next."""
    writes: list[str] = []

    def wrapped(write: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        def one(uri: str, data: bytes) -> None:
            writes.append(uri)
            if len(writes) > survived and not after:
                raise KilledError
            write(uri, data)
            if len(writes) > survived:
                raise KilledError

        return one

    for name in ("put", "create"):
        patched.setattr(storage, name, wrapped(getattr(storage, name)))
    return writes


def end_state(made: ReviewedOutput) -> list[tuple[str, str, str | None]]:
    """What has come, without the folder's name."""
    drawn = {found.key for found in storage.list_objects(f"{made.root}/reviews/masks")}
    kept = {one["final_mask_uri"].split("reviews/masks/")[-1] for one in made.reviews()} & drawn
    assert drawn == kept, "no mask without its review"
    assert all(one["final_mask_sha256"] for one in made.reviews())
    return [(one["image_uri"], one["verdict"], one["final_mask_sha256"]) for one in made.reviews()]
