"""`adopt` of .onnx files: from a file to a bundle that labels, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from foreign_networks import SIZE, write_coloured_set, write_onnx
from onnx import TensorProto
from PIL import Image
from safetensors.torch import load_file, save_file

import segpipe
from segpipe.cli import run
from segpipe.config import AdoptSettings, CalibrateSettings
from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.errors import DatasetError, ModelError, RunError
from segpipe.evaluation.calibration import calibrate
from segpipe.evaluation.measure import evaluate
from segpipe.models.bundle import load_bundle, read_card
from segpipe.training.adopt import AdoptResult, adopt


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_coloured_set(tmp_path_factory.mktemp("discs")))


def settings(data: str, path: Path, model: Path, **others: Any) -> AdoptSettings:
    values: dict[str, Any] = {"split": "val", "epochs": 2, "output": "logits", "device": "cpu"}
    values |= {"class_map": str(class_map(path.parent))} | others
    return AdoptSettings(path=str(path), data=data, model=str(model), **values)


def class_map(folder: Path, red: str = "ground", blue: str = "disc") -> Path:
    written = folder / f"{red}-{blue}.toml"
    written.write_text(f'[classes]\n0 = "{red}"\n1 = "{blue}"\n')
    return written


@pytest.fixture(scope="module")
def adopted(discs: str, tmp_path_factory: pytest.TempPathFactory) -> AdoptResult:
    folder = tmp_path_factory.mktemp("adopted")
    return adopt(settings(discs, write_onnx(folder / "colours.onnx"), folder / "model"))


@pytest.fixture
def copied(adopted: AdoptResult, tmp_path: Path) -> Path:
    shutil.copytree(adopted.model, tmp_path / "copy")
    return tmp_path / "copy"


def refusal(data: str, path: Path, **others: Any) -> str:
    with pytest.raises(ModelError) as caught:
        adopt(settings(data, path, path.parent / "model", **others))
    assert "\n" not in str(caught.value)
    assert not (path.parent / "model" / "model.json").exists()
    return str(caught.value)


def test_an_adopted_network_labels_as_it_does_alone(discs: str, adopted: AdoptResult) -> None:
    dataset = open_dataset(discs)
    images = [read_sample(dataset, sample)[0] for sample in list_samples(dataset, "calibration")]
    for image, labeled in zip(images, segpipe.load_model(adopted.model, "cpu").label(images), strict=True):
        assert np.array_equal(labeled.mask, image[..., 2] > image[..., 0])
        assert 0 <= labeled.confidence <= 1
    assert adopted.images == 12
    assert adopted.mean_iou > 0.9


def test_everything_after_it_takes_the_bundle_as_any_other(discs: str, copied: Path) -> None:
    result = evaluate(str(copied), discs, "calibration", "cpu")
    assert result.scores["adversarial"] is None
    assert {"discriminator", "max_softmax", "soft_dice", "flip_tta"} <= set(result.scores)
    target = {"min_iou": 0.5, "max_bad_fraction": 0.3, "confidence": 0.8}
    policy = calibrate(CalibrateSettings(data=discs, model=str(copied), split="calibration", **target))
    assert policy.model_digest == load_bundle(str(copied), "cpu").digest
    with pytest.raises(DatasetError, match="trained on"):
        calibrate(CalibrateSettings(data=discs, model=str(copied), split="val", **target))


def test_it_labels_a_bucket_with_a_promise_and_odd_sizes(discs: str, copied: Path, tmp_path: Path) -> None:
    target = {"min_iou": 0.5, "max_bad_fraction": 0.3, "confidence": 0.8}
    calibrate(CalibrateSettings(data=discs, model=str(copied), split="calibration", **target))
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(Path(discs) / "train" / "images", source)
    for name, shape in (("thin", (40, 1)), ("flat", (1, 40)), ("dot", (1, 1))):
        Image.fromarray(np.full((*shape, 3), (60, 60, 200), np.uint8)).save(source / f"{name}.png")
    arguments = ["--model", str(copied), "--device", "cpu"]
    assert run(["label", str(source), str(output), *arguments]) == 0
    rows = pd.read_parquet(output / "manifests").set_index("image_uri")
    assert len(rows) == 9
    assert set(rows.decision) <= {"accepted", "review"}
    assert "accepted" in set(rows.decision)
    sizes = {Path(uri).stem: (row.image_height, row.image_width) for uri, row in rows.iterrows()}
    assert (sizes["thin"], sizes["flat"], sizes["dot"]) == ((40, 1), (1, 40), (1, 1))
    assert set(rows.model_id) == {load_bundle(str(copied), "cpu").model_id}
    assert run(["plan", str(source), str(output), "--model", str(copied)]) == 0


def test_one_seed_gives_the_same_model_and_another_network_another(
    discs: str, adopted: AdoptResult, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "colours.onnx")
    assert adopt(settings(discs, path, tmp_path / "again")).model_id == adopted.model_id
    other = write_onnx(tmp_path / "other.onnx", gain=41.0)
    assert adopt(settings(discs, other, tmp_path / "other")).model_id != adopted.model_id


def test_the_data_sets_range_of_values_is_the_models(discs: str, tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    description = json.loads((data / "dataset.json").read_text()) | {"image": {"range": [-10, 300]}}
    (data / "dataset.json").write_text(json.dumps(description))
    found = adopt(settings(str(data), write_onnx(tmp_path / "colours.onnx"), tmp_path / "model"))
    assert read_card(found.model).spec.image_range == (-10.0, 300.0)
    assert evaluate(found.model, str(data), "calibration", "cpu").mean_iou > 0.99


def test_a_model_is_not_adopted_over_another(discs: str, adopted: AdoptResult, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds a finished model: adopt into another folder"):
        adopt(settings(discs, write_onnx(tmp_path / "colours.onnx"), Path(adopted.model)))


def test_a_changed_file_of_the_generator_is_refused_at_loading(copied: Path) -> None:
    write_onnx(copied / "generator" / "model.onnx", gain=39.0)
    with pytest.raises(ModelError, match=r"another generator/model.onnx than it was made with"):
        load_bundle(str(copied), "cpu")


def test_a_generator_that_computes_something_else_here_is_refused_at_loading(copied: Path) -> None:
    tensors = load_file(copied / "test_vector.safetensors")
    tensors["logits"][0, 1, 3, 4] += 0.02 * tensors["logits"].abs().max()
    save_file(tensors, copied / "test_vector.safetensors")
    card = json.loads((copied / "model.json").read_text())
    with pytest.raises(ModelError, match="its files were changed"):
        load_bundle(str(copied), "cpu")
    from segpipe.models.bundle import ModelSpec, model_digest

    contents = [(copied / f"{name}.safetensors").read_bytes() for name in ("test_vector", "discriminator")]
    digest = model_digest(ModelSpec(**card["spec"]), *contents)
    (copied / "model.json").write_text(json.dumps(card | {"digest": digest, "model_id": digest[:12]}))
    with pytest.raises(ModelError, match=r"computes something else here .* differ by 0.02"):
        load_bundle(str(copied), "cpu")


def test_what_lies_beside_the_file_says_how_it_takes_images_and_options_go_before_it(
    discs: str, adopted: AdoptResult, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "bgr.onnx", gain=-20.0)
    told = {
        "channel_order": "bgr",
        "range": "-1..1",
        "output": "probabilities",
        "classes": ["ground", "disc"],
    }
    (tmp_path / "bgr.onnx.json").write_text(json.dumps(told))
    found = adopt(settings(discs, path, tmp_path / "model", class_map=None))
    assert found.mean_iou == adopted.mean_iou, "options say logits, the file beside says all else"
    foreign = load_bundle(found.model, "cpu").spec.foreign
    assert foreign is not None
    assert (foreign.channels, foreign.mean, foreign.values) == ("bgr", (0.5, 0.5, 0.5), "logits")


def test_probabilities_mean_and_deviation_are_taken_as_told(discs: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", gain=10.0, softmax=True)
    told = {"output": "probabilities", "range": "0..255", "mean": "100,110,120", "deviation": "50,50,50"}
    model = adopt(settings(discs, path, tmp_path / "model", **told)).model
    generator = load_bundle(model, "cpu").generator
    image = np.full((1, 3, *SIZE), 0.0, np.float32) + np.array([200, 60, 190], np.float32).reshape(1, 3, 1, 1)
    from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION, normalise

    given = generator(normalise(torch.from_numpy(image), MEAN, STANDARD_DEVIATION)).softmax(dim=1)
    blue = 1 / (1 + np.exp(-10 * ((190 - 120) / 50 - (200 - 100) / 50)))
    assert given[0, 1, 5, 5].item() == pytest.approx(blue, abs=1e-4)


@pytest.mark.parametrize("batch", [1, "B"])
def test_a_fixed_size_is_the_working_size(discs: str, tmp_path: Path, batch: int | str) -> None:
    path = write_onnx(tmp_path / "fixed.onnx", size=(32, 64), batch=batch)
    spec = load_bundle(adopt(settings(discs, path, tmp_path / "model", epochs=1)).model, "cpu").spec
    assert spec.working_size == (32, 64)
    assert spec.foreign is not None
    assert spec.foreign.one_size
    assert spec.second_look is None


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"size": (40, 64)}, "40x64 only, which are no multiples of 32"),
        ({"size": (64, "W")}, "fixes one side"),
        ({"batch": 4}, "takes 4 images at once, always"),
        ({"channels": 4}, r"takes tensor\(float\) of shape .*B, 4, H, W"),
        ({"kind": TensorProto.UINT8}, r"takes tensor\(uint8\)"),
        ({"outputs": 2}, r"has 2 outputs \(output, output1\): export it with one"),
        ({"inputs": 2}, r"has 2 inputs \(image, image1\)"),
        ({"domain": "made.up"}, "needs operators of made.up"),
        ({"external": True}, "keeps weights in other files"),
        ({"bias": float("nan")}, "outputs that are no numbers"),
    ],
)
def test_a_network_that_cannot_be_adopted_is_refused_by_name(
    discs: str, tmp_path: Path, network: dict[str, Any], said: str
) -> None:
    import re

    assert re.search(said, refusal(discs, write_onnx(tmp_path / "net.onnx", **network)))


def test_what_an_onnx_file_gives_has_to_be_said_and_has_to_be_true(discs: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    assert "add --output logits or --output probabilities" in refusal(discs, path, output=None)
    assert "are no probabilities: say --output logits" in refusal(discs, path, output="probabilities")


def test_a_file_that_is_no_onnx_is_refused(discs: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"PK\x03\x04 not at all")
    assert "is no .onnx file that can be read" in refusal(discs, tmp_path / "net.onnx")
    assert "it is not there" in refusal(discs, tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ["net.pt2", "net.pt", "pytorch_model.bin", "net.pth", "net.pkl"])
def test_what_can_run_code_is_refused_by_its_name_unread(discs: str, tmp_path: Path, name: str) -> None:
    assert "loads neither pickles nor exported programs" in refusal(discs, tmp_path / name)


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        (
            {"gain": -40.0},
            {},
            r"makes no sense .*'ground' everywhere has 0\.4\d+; likely cause: its channels are bgr",
        ),
        ({"gain": 0.1, "bias": 5.0}, {}, r"likely cause: its normalisation is values of 0 to 255"),
        ({}, {"class_map": "exchanged"}, r"likely cause: (its channels are bgr|the class map has exchanged)"),
    ],
    ids=["swapped channels", "normalisation", "class map"],
)
def test_masks_worse_than_one_class_everywhere_stop_it_with_the_likely_cause(
    discs: str, tmp_path: Path, network: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    import re

    if options:
        options = {"class_map": str(class_map(tmp_path, "disc", "ground"))}
    assert re.search(said, refusal(discs, write_onnx(tmp_path / "net.onnx", **network), **options))


def test_a_reading_that_suits_the_images_far_better_is_said(
    discs: str, adopted: AdoptResult, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "net.onnx", gain=1.0, bias=-0.2)
    found = adopt(settings(discs, path, tmp_path / "model", range="0..255", epochs=1))
    assert found.mean_iou > 0.9
    assert not [line for line in (*found.warnings, *adopted.warnings) if "would be" in line]
    faint = write_onnx(tmp_path / "faint.onnx", gain=1.0, bias=-20.0)
    said = adopt(settings(discs, faint, tmp_path / "faint", epochs=1)).warnings
    assert "would be 1.000 if its normalisation is values of 0 to 255: is it so?" in said[-1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"classes": {"0": "ground"}}', "leaves out 1 of the network"),
        ('{"classes": {"0": "ground", "1": "sky"}}', "maps to 'sky', which is no class of the data set"),
        ('{"classes": {"0": "ground", "2": "disc"}}', "names '2', which the network has not"),
        ('{"classes": {"0": "ground", "1": "disc"}, "ignore": ["1"]}', "both maps and ignores '1'"),
        ('{"classes": {}, "ignore": ["0", "1"]}', "ignores every class"),
        ('{"0": "ground"}', "is no class map"),
        ("{", "is no JSON or TOML"),
        (
            '{"classes": {"0": "ground", "0": "disc", "1": "disc"}}',
            "can be read ('0' is there twice): correct",
        ),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(
    discs: str, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "map.json").write_text(content)
    path = write_onnx(tmp_path / "net.onnx")
    assert said in refusal(discs, path, class_map=str(tmp_path / "map.json"))


def test_a_description_that_says_a_thing_twice_is_refused(discs: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    Path(f"{path}.json").write_text('{"range": "0-1", "range": "0-255"}')
    assert "net.onnx.json is no JSON that can be read ('range' is there twice)" in refusal(discs, path)


def test_other_classes_need_a_class_map(tmp_path: Path) -> None:
    data = write_coloured_set(tmp_path / "three", ("ground", "disc", "sky"))
    path = write_onnx(tmp_path / "net.onnx")
    assert "has 2 classes (0, 1), the data set 3 (ground, disc, sky)" in refusal(
        str(data), path, class_map=None
    )
    model = adopt(settings(str(data), path, tmp_path / "model"))
    assert "no class of the network is 'sky': its masks never show it" in model.warnings
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    assert set(np.unique(segpipe.load_model(model.model, "cpu").label([image])[0].mask)) == {0, 1}


@pytest.mark.parametrize("blocked", ["onnx", "onnxruntime"])
def test_without_the_extra_one_line_says_what_to_install(
    adopted: AdoptResult, blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)  # as if it were not installed
    with pytest.raises(ModelError, match=r"pip install 'segpipe\[onnx\]'$"):
        load_bundle(adopted.model, "cpu")


def test_the_command_prints_the_result(
    discs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    arguments = ["--data", discs, "--split", "val", "--model", str(tmp_path / "model"), "--epochs", "1"]
    also = ["--class-map", str(class_map(tmp_path)), "--output", "logits", "--device", "cpu", "--json"]
    assert run(["adopt", str(path), *arguments, *also]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert run(["adopt", str(tmp_path / "net.pt2"), *arguments, *also]) == 1
