"""`adopt` of transformers folders: the masks are transformers' own, and nothing of a folder is trusted."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_networks import heads, image_processor, segformer, write_taught_segformer
from labelled_sets import write_set
from safetensors.torch import load_file, save_file

import segpipe
from segpipe.config import AdoptSettings
from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.errors import ModelError
from segpipe.models.bundle import load_bundle
from segpipe.models.generators import transformers_folder
from segpipe.training.adopt import AdoptResult, adopt

SIZE = (64, 96)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("discs")
    return str(write_set(root, {"train": 12, "val": 8, "calibration": 8}, size=SIZE))


@pytest.fixture(scope="module")
def taught(discs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught_segformer(tmp_path_factory.mktemp("networks") / "segformer", discs)


def settings(data: str, path: Path, model: Path, **others: Any) -> AdoptSettings:
    values: dict[str, Any] = {"split": "val", "epochs": 2, "device": "cpu"} | others
    return AdoptSettings(path=str(path), data=data, model=str(model), **values)


@pytest.fixture(scope="module")
def adopted(discs: str, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> AdoptResult:
    """With every socket closed: nothing is fetched."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
        return adopt(settings(discs, taught, tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture
def copied(taught: Path, tmp_path: Path) -> Path:
    shutil.copytree(taught, tmp_path / "network")
    return tmp_path / "network"


def refusal(data: str, path: Path, **others: Any) -> str:
    with pytest.raises(ModelError) as caught:
        adopt(settings(data, path, path.parent / "model", **others))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, file: str, **values: Any) -> Path:
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(content))
    return folder


def test_masks_are_those_that_transformers_makes_of_the_images(
    discs: str, taught: Path, adopted: AdoptResult
) -> None:
    from transformers import SegformerForSemanticSegmentation

    network = SegformerForSemanticSegmentation.from_pretrained(taught).eval()
    processor = image_processor(do_resize=False)
    dataset = open_dataset(discs)
    images = [read_sample(dataset, sample)[0] for sample in list_samples(dataset, "calibration")]
    with torch.no_grad():
        outputs = network(**processor(images, return_tensors="pt"))
    theirs = processor.post_process_semantic_segmentation(outputs, [SIZE] * len(images))
    ours = segpipe.load_model(adopted.model, "cpu").label(images)
    # id2label has the two classes the other way round.
    agreement = np.mean([(1 - a.numpy() == b.mask) for a, b in zip(theirs, ours, strict=True)])
    assert agreement >= 0.999
    assert {0, 1} == set(np.unique(np.stack([labeled.mask for labeled in ours])))


def test_the_bundle_holds_what_it_needs_and_its_digest_covers_it(taught: Path, adopted: AdoptResult) -> None:
    bundle = load_bundle(adopted.model, "cpu")
    foreign = bundle.spec.foreign
    assert foreign is not None
    assert set(foreign.files) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    kept = Path(adopted.model) / "generator" / "model.safetensors"
    assert kept.read_bytes() == (taught / "model.safetensors").read_bytes()
    assert (foreign.output_stride, foreign.one_size, foreign.class_map) == (4, False, (1, 0))
    assert (bundle.spec.second_look, bundle.spec.belief_kind) == ("half", "plain")
    assert {"transformers", "torch"} <= set(bundle.card.versions)


def test_a_pickle_beside_the_weights_is_never_read(
    discs: str, copied: Path, adopted: AdoptResult, tmp_path: Path
) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"never read")
    assert adopt(settings(discs, copied, tmp_path / "model")).model_id == adopted.model_id


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def other_classes(folder: Path) -> None:
    change(folder, "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})


def no_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["decode_head.classifier.bias"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_config(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: change(folder, "config.json", **values)


def with_processor(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: change(folder, "preprocessor_config.json", **values)


CODE = {"AutoModelForSemanticSegmentation": "planted.Network"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "holds pytorch_model.bin and no model.safetensors"),
        (without_weights, "holds no model.safetensors"),
        (without_head, "lack 2 of its tensors (decode_head.classifier.bias), which would be random"),
        (other_classes, "transformers cannot load the generator"),
        (no_numbers, "outputs that are no numbers"),
        (with_config(architectures=["SegformerForImageClassification"]), "(it classifies whole images)"),
        (with_config(architectures=["Mask2FormerForUniversalSegmentation"]), "segpipe takes Segformer"),
        (with_config(model_type="beit"), "model_type 'beit'"),
        (with_config(auto_map=CODE), "asks for code of its own (auto_map)"),
        (with_config(backbone_config={"auto_map": CODE}), "asks for code of its own (auto_map)"),
        (with_config(quantization_config={"quant_method": "awq"}), "asks for code of its own"),
        (with_config(backbone="microsoft/resnet-50"), "would be downloaded (backbone)"),
        (with_config(use_pretrained_backbone=True), "would be downloaded (use_pretrained_backbone)"),
        (with_config(attn_implementation="kernels-community/flash"), "asks for an attention of its own"),
        (with_config(num_channels=4), "takes 4 channels"),
        (with_processor(do_center_crop=True), "crops images (do_center_crop)"),
        (with_processor(auto_map=CODE), "asks for code of its own (auto_map)"),
        (with_processor(image_mean=None, image_std=None), "image_mean and image_std"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "holds no preprocessor_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"id2label": {"0": "a", "0": "b"}}'),
            "('0' is there twice)",
        ),
        (lambda folder: (folder / "config.json").unlink(), "it is no transformers folder"),
    ],
)
def test_a_folder_that_cannot_be_adopted_is_refused_by_name(
    discs: str, copied: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(copied)
    assert said in refusal(discs, copied)


def test_a_folder_that_is_not_there_and_options_for_files_are_refused(
    discs: str, copied: Path, tmp_path: Path
) -> None:
    assert "is not there" in refusal(discs, tmp_path / "nowhere")
    assert "leave out mean, which are for .onnx files" in refusal(discs, copied, mean="0,0,0")


def test_code_in_the_folder_does_not_run(discs: str, copied: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (copied / "planted.py").write_text(f"open({str(mark)!r}, 'w')\n")
    change(copied, "config.json", auto_map=CODE | {"AutoConfig": "planted.Config"})
    refusal(discs, copied)
    files = {name: (copied / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with pytest.raises(ModelError, match="code of its own"):
        transformers_folder.build(files)
    assert not mark.exists()


def test_a_bundle_brings_transformers_nothing_but_configuration_and_weights(
    taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    files = {path.name: path.read_bytes() for path in taught.iterdir()}
    files |= {"adapter_config.json": b"{}", "pytorch_model.bin": b"", "planted.py": b""}
    there: list[str] = []
    real = transformers.SegformerForSemanticSegmentation.from_pretrained

    def watched(folder: str, **values: Any) -> Any:
        there.extend(path.name for path in Path(folder).iterdir())
        return real(folder, **values)

    monkeypatch.setattr(transformers.SegformerForSemanticSegmentation, "from_pretrained", watched)
    transformers_folder.build(files)
    assert sorted(there) == ["config.json", "model.safetensors"]
    index = json.dumps({"weight_map": {"a": "../../other.safetensors"}}).encode()
    with pytest.raises(ModelError, match="names files that are not there"):
        transformers_folder.build(files | {"model.safetensors.index.json": index})


@pytest.mark.parametrize("key", ["reduce_labels", "do_reduce_labels"])
def test_outputs_without_names_begin_at_one_where_labels_were_reduced(
    discs: str, taught: Path, tmp_path: Path, key: str
) -> None:
    three = str(write_set(tmp_path / "three", {"val": 6}, size=SIZE, classes=("none", "disc", "ground")))
    shutil.copytree(taught, tmp_path / "network")
    change(tmp_path / "network", "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    change(tmp_path / "network", "preprocessor_config.json", **{"do_reduce_labels": False, key: True})
    from segpipe.models.class_map import by_name

    found = transformers_folder.read(str(tmp_path / "network"), {})
    assert found.classes is not None
    assert by_name(found.classes, open_dataset(three).classes, found.first_class) == (1, 2)


def test_weights_in_several_files_are_taken_whole(
    discs: str, taught: Path, adopted: AdoptResult, tmp_path: Path
) -> None:
    from transformers import SegformerForSemanticSegmentation

    folder = tmp_path / "network"
    shutil.copytree(taught, folder)
    (folder / "model.safetensors").unlink()
    SegformerForSemanticSegmentation.from_pretrained(taught).save_pretrained(folder, max_shard_size="40KB")
    assert not (folder / "model.safetensors").exists()
    found = adopt(settings(discs, folder, tmp_path / "model"))
    assert (found.mean_iou, found.pixel_accuracy) == (adopted.mean_iou, adopted.pixel_accuracy)


@pytest.mark.parametrize("name", ["upernet", "upernet-swin", "mobilenet", "beit", "dpt"])
def test_each_head_of_the_list_gives_the_logits_that_it_gives_in_transformers(
    discs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION, normalise
    from segpipe.training import adopt as adopting

    torch.manual_seed(0)
    network, stride, one_size = heads()[name]
    network.eval().save_pretrained(tmp_path / "network")
    image_processor(image_mean=[0.5] * 3, image_std=[0.4] * 3).save_pretrained(tmp_path / "network")
    # Untrained masks make no sense, which is not what this is about.
    monkeypatch.setattr(adopting, "require_sense", lambda *_: adopting.SegmentationMetrics(0.5, 0.5, ()))
    bundle = load_bundle(
        adopt(settings(discs, tmp_path / "network", tmp_path / "model", epochs=1)).model, "cpu"
    )
    size = (64, 64) if one_size else SIZE
    assert bundle.spec.working_size == size
    assert bundle.spec.foreign is not None
    assert (bundle.spec.foreign.output_stride, bundle.spec.foreign.one_size) == (stride, one_size)
    images = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = network(pixel_values=(images / 255 - 0.5) / 0.4).logits
        ours = bundle.generator(normalise(images, MEAN, STANDARD_DEVIATION))
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_without_the_extras_all_is_imported_and_one_line_says_what_to_install(adopted: AdoptResult) -> None:
    script = (
        "import sys; sys.modules |= dict.fromkeys(['transformers', 'onnx', 'onnxruntime'])\n"
        "from segpipe.models.generators import onnx_file, transformers_tuning\n"
        "from segpipe.models.bundle import load_bundle\n"
        f"load_bundle({adopted.model!r}, 'cpu')\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert said.stderr.splitlines()[-1].endswith("pip install 'segpipe[transformers]'")


def test_an_untaught_network_is_stopped_for_it_makes_no_sense(discs: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = segformer()
    with torch.no_grad():
        network.decode_head.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    network.eval().save_pretrained(tmp_path / "network")
    image_processor().save_pretrained(tmp_path / "network")
    said = refusal(discs, tmp_path / "network")
    assert "makes no sense of the images: mean IoU 0.0" in said
    assert "likely cause: " in said
