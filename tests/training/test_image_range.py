"""Objects that show only within a thirtieth of 16 bits: trained on, measured and labelled (C14)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from labelled_sets import put, saved, scene, write_set
from PIL import Image

import segpipe
from segpipe import storage
from segpipe.config import CalibrateSettings, LabelSettings, TrainSettings
from segpipe.datasets import list_samples, open_dataset
from segpipe.errors import DatasetError, RunError
from segpipe.evaluation.calibration import calibrate
from segpipe.evaluation.measure import evaluate
from segpipe.images import decode_mask
from segpipe.labeling.run import label_source
from segpipe.labeling.run_record import load_plan
from segpipe.manifests.query import query
from segpipe.manifests.run_range import range_of_run
from segpipe.models.bundle import read_card
from segpipe.models.labeler import Labeler, load_model
from segpipe.training.labelled_pixels import load_split
from segpipe.training.run import train

LOW, HIGH = 1000, 1000 + 65536 // 30
DISC = 1


def deep(pixels: np.ndarray) -> np.ndarray:
    """HxW uint16: the picture within LOW to HIGH."""
    return (LOW + pixels[..., 0].astype(float) * (HIGH - LOW) / 255).round().astype(np.uint16)


def tiff(pixels: np.ndarray) -> bytes:
    return saved(deep(pixels), "TIFF")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_set(
        tmp_path_factory.mktemp("set"), {"train": 30, "val": 6, "test": 4}, image=tiff, extension="tif"
    )
    set_range(root, [LOW, HIGH])
    return root


def set_range(root: Path, image_range: list[float] | None) -> None:
    description = json.loads((root / "dataset.json").read_text()) | {"image": {"range": image_range}}
    if image_range is None:
        del description["image"]
    put(root / "dataset.json", json.dumps(description).encode())


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("model") / "m")
    train(
        TrainSettings(data=str(data), model=url, epochs=8, batch_size=8, objective="supervised", device="cpu")
    )
    return url


def test_objects_are_found_in_files_and_in_arrays(data: Path, model: str, tmp_path: Path) -> None:
    assert read_card(model).spec.image_range == (LOW, HIGH)
    result = evaluate(model, str(data), "test", "cpu")
    assert result.per_class_iou["disc"] > 0.7
    output, source = str(tmp_path / "out"), tmp_path / "raw"
    pictures, truths = zip(*(scene(seed) for seed in range(100, 104)), strict=True)
    for number, picture in enumerate(pictures):
        put(source / f"{number}.tif", tiff(picture))
    label_source(str(source), output, load_model(model, "cpu"), LabelSettings(), "r1")
    rows = query(output, "SELECT mask_uri FROM labels ORDER BY image_uri").to_pylist()
    masks = [decode_mask(storage.read_bytes(row["mask_uri"])) for row in rows]
    arrays = segpipe.load_model(model, "cpu").label([deep(picture) for picture in pictures])
    for mask, labeled, truth in zip(masks, arrays, truths, strict=True):
        found, true = mask == DISC, truth == DISC
        assert (found & true).sum() / (found | true).sum() > 0.6
        np.testing.assert_array_equal(labeled.mask, mask)


def test_training_and_labelling_see_the_same_pixels(
    data: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, labeler = open_dataset(str(data)), load_model(model, "cpu")
    labelled: list[np.ndarray] = []
    judge = Labeler.judge

    def recorded(self: Labeler, prepared: list[np.ndarray]) -> object:
        labelled.extend(prepared)
        return judge(self, prepared)

    monkeypatch.setattr(Labeler, "judge", recorded)
    label_source(str(data / "test/images"), str(tmp_path / "out"), labeler, LabelSettings(), "r1")
    labeler.label([np.asarray(Image.open(sample.image_uri)) for sample in list_samples(dataset, "test")])
    with load_split(dataset, "test", labeler.bundle.spec, 10**9) as taught:
        learnt = [taught.pixels(row)[0].transpose(1, 2, 0).copy() for row in range(4)]
    assert learnt[0].max() - learnt[0].min() > 150
    by_file, by_array = ([image.tobytes() for image in labelled[part]] for part in (slice(4), slice(4, 8)))
    assert by_array == [image.tobytes() for image in learnt]
    assert sorted(by_file) == sorted(by_array)


@pytest.mark.parametrize("other", [None, [0, HIGH]])
def test_a_data_set_of_another_range_is_refused_in_one_line(
    data: Path, model: str, tmp_path: Path, other: list[float] | None
) -> None:
    root = shutil.copytree(data, tmp_path / "other")
    set_range(root, other)
    place = {"data": str(root), "model": model, "split": "test", "device": "cpu"}
    shown = "none" if other is None else r"\[0, 3184\]"
    said = rf"image range {shown} and the model was made with \[1000, 3184\]"
    with pytest.raises(DatasetError, match=said) as refused:
        evaluate(model, str(root), "test", "cpu")
    assert "\n" not in str(refused.value)
    with pytest.raises(DatasetError, match=said):
        calibrate(CalibrateSettings(**place, min_iou=0.5, max_bad_fraction=0.3, confidence=0.8))


def test_calibrate_scores_each_image_as_labelling_does(data: Path, model: str, tmp_path: Path) -> None:
    copy = str(shutil.copytree(model, tmp_path / "model"))
    place = {"data": str(data), "model": copy, "split": "test", "device": "cpu"}
    policy = calibrate(CalibrateSettings(**place, min_iou=0.5, max_bad_fraction=0.9, confidence=0.5))
    images = [sample.image_uri for sample in list_samples(open_dataset(str(data)), "test")]
    scores = [
        labeled.discriminator_score
        for labeled in load_model(model, "cpu").label([Image.open(uri) for uri in images])
    ]
    assert policy.accepted == 4
    assert policy.threshold == pytest.approx(min(scores), abs=1e-3)


def test_a_run_keeps_the_range_for_whoever_shows_its_images(data: Path, model: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    label_source(str(data / "test/images"), output, load_model(model, "cpu"), LabelSettings(), "r1")
    plan = load_plan(output, "r1")
    assert plan is not None
    assert plan.image_range == range_of_run(output, "r1") == (LOW, HIGH)
    assert range_of_run(output, "another") is None
    storage.put(f"{output}/runs/r1/run.json", b'{"image_range": [3, 1]}')
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        range_of_run(output, "r1")
    storage.put(f"{output}/runs/r1/run.json", b'{"image_range": [')
    assert range_of_run(output, "r1") == (LOW, HIGH)  # by the plan
    storage.put(f"{output}/runs/r1/plan.parquet", b"")
    with pytest.raises(RunError, match=r"plan\.parquet is damaged"):
        range_of_run(output, "r1")
