"""train, evaluate and calibrate look at a data set first: what they refuse, say, and may be told to allow."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_sets import png, put, write_set
from PIL import Image

from segpipe.confidence.policy import from_json
from segpipe.config import CalibrateSettings, TrainSettings
from segpipe.datasets import open_dataset
from segpipe.errors import DatasetError
from segpipe.evaluation.calibration import calibrate
from segpipe.evaluation.measure import evaluate
from segpipe.inspection.facts import look_through
from segpipe.models.labeler import JudgedMask, Labeled, Labeler
from segpipe.training.run import train


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("discs") / "data", {"train": 8, "val": 3, "calibration": 6})


@pytest.fixture(scope="module")
def trained(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = str(tmp_path_factory.mktemp("models") / "discs")
    train(TrainSettings(data=str(discs), model=model, epochs=1, image_size="32x64", device="cpu"))
    return model


@pytest.fixture
def data(discs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(discs, tmp_path / "data"))


@pytest.fixture
def model(trained: str, tmp_path: Path) -> str:
    return str(shutil.copytree(trained, tmp_path / "model"))


def settings(data: Path, model: str, **values: object) -> CalibrateSettings:
    places = {"data": str(data), "model": model, "split": "calibration", "device": "cpu"}
    return CalibrateSettings(
        **{**places, "min_iou": 0.1, "max_bad_fraction": 0.5, "confidence": 0.6, **values}
    )


def copy_pair(data: Path, source: str, target: str) -> None:
    for folder in ("images", "masks"):
        split, _, key = source.partition("/")
        to_split, _, to_key = target.partition("/")
        shutil.copy(data / split / folder / f"{key}.png", data / to_split / folder / f"{to_key}.png")


def test_train_refuses_an_image_that_validates_too_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    copy_pair(data, "train/train_002", "val/again")
    model = tmp_path / "new"
    with pytest.raises(DatasetError, match="splits train and val share 1 image"):
        train(TrainSettings(data=str(data), model=str(model), device="cpu"))
    assert not model.exists()


def test_train_leaves_out_what_it_may_and_says_all_in_its_result(data: Path, tmp_path: Path) -> None:
    put(data / "train/masks/train_003.png", b"no mask")
    copy_pair(data, "train/train_004", "train/twice")
    for number in range(3):
        put(data / f"val/masks/val_{number:03d}.png", png(np.zeros((48, 64), np.uint8)))
    asked = TrainSettings(
        data=str(data),
        model=str(tmp_path / "new"),
        epochs=1,
        image_size="32x64",
        device="cpu",
        allow=("unreadable",),
    )
    warnings = train(asked).warnings
    assert [line.split(":")[0] for line in warnings] == [
        "allowed",
        "split train holds 1 image more than once, pixel by pixel",
        "class 'disc' has no pixel in split val",
        "class 'ground' only ever covers whole images of split val (3 images)",
    ]
    seen = (tmp_path / "new/seen_images.txt").read_text().split()
    assert len(seen) == 7  # of nine files one is a copy and one has no mask


def test_evaluate_refuses_what_was_trained_on_and_measures_it_if_allowed(data: Path, trained: str) -> None:
    with pytest.raises(DatasetError, match="8 images among the images the model was trained on"):
        evaluate(trained, str(data), "train", "cpu")
    copy_pair(data, "train/train_002", "val/again")
    with pytest.raises(DatasetError, match="1 image among the images the model was trained on"):
        evaluate(trained, str(data), "val", "cpu")
    found = evaluate(trained, str(data), "val", "cpu", allow=("shared",))
    assert found.n == 4
    assert found.warnings[0].startswith("allowed: split val holds 1 image")


def test_a_class_that_is_there_and_that_the_model_never_shows_is_named(
    data: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Labeler.finish

    def only_ground(self: Labeler, judged: JudgedMask, height: int, width: int) -> Labeled:
        return replace(finish(self, judged, height, width), mask=np.zeros((height, width), np.uint8))

    monkeypatch.setattr(Labeler, "finish", only_ground)
    for split in ("val", "calibration"):
        images = look_through(open_dataset(str(data)), split)
        line = f"the model never shows class 'disc', which has {images.pixels[1]} pixels in split {split}"
        if split == "val":
            assert evaluate(model, str(data), split, "cpu").warnings == (line,)
        else:
            assert calibrate(settings(data, model)).warnings == (line,)


def test_calibrate_refuses_copies_however_they_are_saved(data: Path, model: str) -> None:
    shutil.copy(
        data / "calibration/masks/calibration_001.png", data / "calibration/masks/calibration_again.png"
    )
    Image.open(data / "calibration/images/calibration_001.png").save(
        data / "calibration/images/calibration_again.tif"
    )
    with pytest.raises(DatasetError, match="calibration_again is calibration_001"):
        calibrate(settings(data, model))
    assert not Path(model, "policy.json").exists()
    policy = calibrate(settings(data, model, allow=("duplicates",)))
    assert policy.n_images == 7
    assert any(line.startswith("allowed: split calibration holds 1 image") for line in policy.warnings)
    assert from_json(Path(model, "policy.json").read_text()) == policy
    assert calibrate(settings(data, model, group_by="^[^_]+")).n_images == 7  # of one group they count as one


def test_calibrate_counts_by_groups_csv_where_no_pattern_is_given(data: Path, model: str) -> None:
    rows = [f"calibration_{number:03d},camera {number % 3}" for number in range(6)]
    put(data / "groups.csv", "\n".join(["key,group", *rows]).encode())
    assert calibrate(settings(data, model)).n_calibration == 3
    assert calibrate(settings(data, model, group_by=".+")).n_calibration == 6
    put(data / "groups.csv", "\n".join(["key,group", *rows[:5]]).encode())
    with pytest.raises(DatasetError, match="no line for the image 'calibration_005'"):
        calibrate(settings(data, model))


def test_calibrate_keeps_its_warnings_in_the_policy(data: Path, model: str) -> None:
    description = json.loads((data / "dataset.json").read_text())
    assert description["classes"] == ["ground", "disc"]
    for number in range(6):
        put(data / f"calibration/masks/calibration_{number:03d}.png", png(np.zeros((48, 64), np.uint8)))
    policy = calibrate(settings(data, model))
    assert "class 'disc' has no pixel in split calibration" in policy.warnings
    assert "class 'ground' only ever covers whole images of split calibration (6 images)" in policy.warnings
    again = calibrate(settings(data, model))
    assert again.warnings == policy.warnings
