"""Calibrating again on the same images: the first has all of the error, later ones less, and it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_policy import make_policy
from random_model import write_random_model

from segpipe import storage
from segpipe.cli import run
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.looks import Look
from segpipe.confidence.policy import Policy, from_json, sealed, to_json
from segpipe.config import CalibrateSettings
from segpipe.datasets import open_dataset
from segpipe.errors import PolicyError, StorageError
from segpipe.evaluation import calibration
from segpipe.evaluation.calibration import calibrate
from segpipe.evaluation.calibration_look import under_look


def untrained(folder: str, classes: tuple[str, ...], **changes: object) -> str:
    card = Path(write_random_model(folder, classes, **changes), "model.json")
    content = json.loads(card.read_text())
    card.write_text(json.dumps(content | {"training_data": {"fingerprint": "of no images here"}}))
    return folder


@pytest.fixture
def settings(streets: str, tmp_path: Path) -> Callable[..., CalibrateSettings]:
    model = untrained(str(tmp_path / "model"), open_dataset(streets).classes)

    def make(**values: object) -> CalibrateSettings:
        fixed = {
            "model": model, "data": streets, "split": "val", "device": "cpu", "confidence": 0.9,
            "min_iou": 0.001, "max_bad_fraction": 0.3,
        }  # fmt: skip
        return CalibrateSettings(**(fixed | values))  # type: ignore[arg-type]

    return make


def looks(policies: list[Policy]) -> list[tuple[int, float]]:
    return [(one.look.number, one.look.level) for one in policies if one.look]


def test_each_further_look_is_tested_more_strictly_and_all_together_are_promised(
    settings: Callable[..., CalibrateSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = calibrate(settings()), calibrate(settings(max_bad_fraction=0.31))
    third = calibrate(settings(max_bad_fraction=0.32))
    again = calibrate(settings(max_bad_fraction=0.32))
    assert looks([first, second, third]) == [
        (1, pytest.approx(0.1)), (2, pytest.approx(0.1 / 6)), (3, pytest.approx(0.1 / 12))
    ]  # fmt: skip
    assert [one.confidence for one in (first, second, third)] == [0.9, 0.8833, 0.875]
    assert again.look == third.look, "the same calibration again says the same and costs nothing"
    assert from_json(storage.read_bytes(f"{settings().model}/policy.json").decode()) == again
    command = ["calibrate", "--min-iou", "0.001", "--max-bad-fraction", "0.32", "--confidence", "0.9"]
    places = {"--model": settings().model, "--data": settings().data, "--split": "val"}
    assert run([*command, *(word for place in places.items() for word in place), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "with 87.5% confidence" in said
    assert "number 3 on images that overlap, tested at an error of 0.00833" in said
    assert "one more on images that overlap would be tested at 0.005" in said


def test_other_images_and_another_model_have_all_of_the_error_again(
    settings: Callable[..., CalibrateSettings], tmp_path: Path
) -> None:
    calibrate(settings())
    assert looks([calibrate(settings(split="calibration"))]) == [(1, pytest.approx(0.1))]
    classes = open_dataset(settings().data).classes
    untrained(settings().model, classes, iou_rule="graded")
    assert looks([calibrate(settings())]) == [(1, pytest.approx(0.1))], "a model trained anew in that folder"


def test_images_that_overlap_in_part_count(
    settings: Callable[..., CalibrateSettings], streets: str, tmp_path: Path
) -> None:
    fewer = Path(shutil.copytree(streets, tmp_path / "fewer"))
    for image in sorted((fewer / "val/images").iterdir())[:3]:
        image.unlink()
        (fewer / "val/masks" / f"{image.stem}.png").unlink()
    calibrate(settings(data=str(fewer)))
    assert looks([calibrate(settings())]) == [(2, pytest.approx(0.1 / 6))]


def test_a_calibration_that_was_killed_before_its_policy_counts(
    settings: Callable[..., CalibrateSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "to_json", lambda policy: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            calibrate(settings())
    assert not storage.exists(f"{settings().model}/policy.json")
    assert looks([calibrate(settings())]) == [(1, pytest.approx(0.1))], "the same, finished"
    assert looks([calibrate(settings(confidence=0.8))]) == [(2, pytest.approx(0.2 / 6))]


def test_a_model_that_does_not_say_what_it_was_trained_on_is_warned_of(
    settings: Callable[..., CalibrateSettings],
) -> None:
    write_random_model(settings().model, open_dataset(settings().data).classes)
    said = [line for line in calibrate(settings()).warnings if "trained on" in line]
    assert said == [
        "model.json does not say which images the model was trained on: the promise holds only if it has not "
        f"seen those of split val of {settings().data}"
    ]


def test_what_no_policy_can_be_made_of_costs_no_look(
    settings: Callable[..., CalibrateSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that cannot grow are refused before anything is measured, images without a score after it."""
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "look_through", lambda *_: 1 / 0)
        with pytest.raises(PolicyError, match="each group of images once cannot grow"):
            calibrate(settings(grow=True, group_by="^."))
    measure = calibration._measure

    def without_scores(*given: Any) -> Any:
        measured = measure(*given)
        return replace(measured, scores=measured.scores * np.nan)

    with monkeypatch.context() as patched:
        patched.setattr(calibration, "_measure", without_scores)
        with pytest.raises(PolicyError, match="no calibration image has a finite score"):
            calibrate(settings())
    nothing = calibrate(settings(min_iou=0.999, max_bad_fraction=0.01))
    assert (nothing.threshold, looks([nothing])) == (None, [(1, pytest.approx(0.1))])
    assert looks([calibrate(settings())]) == [(2, pytest.approx(0.1 / 6))], "tested in vain is tested, too"


def test_an_unreadable_ledger_is_one_line_and_leaves_the_policy(
    settings: Callable[..., CalibrateSettings],
) -> None:
    before = calibrate(settings())
    storage.put(f"{settings().model}/calibrations/00000001.json", b"{")
    with pytest.raises(StorageError, match=r"calibrations/00000001.json is not JSON .*: restore it"):
        calibrate(settings(confidence=0.8))
    assert from_json(storage.read_bytes(f"{settings().model}/policy.json").decode()) == before


def test_a_folder_that_cannot_be_written_is_one_line_and_gives_no_policy(
    settings: Callable[..., CalibrateSettings],
) -> None:
    Path(settings().model, "calibrations").write_text("no folder")
    with pytest.raises(StorageError, match="calibrations"):
        calibrate(settings())
    assert not storage.exists(f"{settings().model}/policy.json")


def test_error_that_is_spent_is_spent(settings: Callable[..., CalibrateSettings]) -> None:
    calibrate(settings(confidence=0.1))
    with pytest.raises(PolicyError, match="have spent all error that a promise may have: label other images"):
        calibrate(settings(confidence=0.11))


def made(confidence: float, n: int = 40, bad: int = 0) -> Policy:
    ious = [0.0] * bad + [0.9] * (n - bad)
    return make_policy(
        np.linspace(0, 1, n), ious, "m", BadFraction(0.5, 0.1), confidence, "f", "2026-01-01T00:00:00+00:00"
    )


def test_what_is_advised_is_enough_for_the_next_look() -> None:
    look = Look(1, 0.1, 0.9)
    policy = under_look(look, lambda confidence: made(confidence, n=15))
    assert policy.threshold is None
    # 22 without a bad one pass at 0.1, 39 at 0.1 / 6: 0.9 ** 39 = 0.0164.
    assert policy.labelled_images_needed == 39 - 15
    assert made(0.9, n=15).labelled_images_needed == 22 - 15
    assert made(1 - 0.1 / 6, n=39).threshold is not None
    assert made(1 - 0.1 / 6, n=38).threshold is None


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (Look(2, 0.05, 0.8), "confidence 0.9 is not that of look, 0.8"),
        (Look(2, 0.2, 0.9), "the level 0.2 of look is above 1 - confidence 0.9"),
        (Look(2, 0.001, 0.9), "p_value 0.0147\\d+ is above 1 - confidence"),
    ],
)
def test_a_look_that_contradicts_its_policy_is_refused(look: Look, reason: str) -> None:
    policy = made(0.9)
    assert policy.p_value == pytest.approx(0.9**40)
    with pytest.raises(PolicyError, match=rf"does not add up \({reason}"):
        from_json(to_json(sealed(replace(policy, look=look))))
    sound = sealed(replace(policy, look=Look(2, 0.02, 0.9)))
    assert from_json(to_json(sound)) == sound


@pytest.mark.parametrize(
    ("field", "value"), [("number", 0), ("level", 1.0), ("confidence", -0.1), ("number", 1.5), ("more", 1)]
)
def test_a_look_that_is_none_is_refused(field: str, value: object) -> None:
    content = json.loads(to_json(sealed(replace(made(0.9), look=Look(1, 0.1, 0.9)))))
    content["look"][field] = value
    with pytest.raises(PolicyError, match=f"damaged at look.{field}"):
        from_json(json.dumps(content))


def test_a_policy_without_a_look_says_nothing_of_it() -> None:
    assert "look" not in json.loads(to_json(made(0.9)))
