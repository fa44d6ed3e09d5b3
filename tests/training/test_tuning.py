"""`train --generator`: a transformers folder learns on in the game, and is again one in the bundle."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_networks import heads, image_processor, write_onnx, write_taught_segformer
from labelled_sets import write_set
from safetensors.torch import load_file, save_file

import segpipe
from segpipe import cli
from segpipe.config import TrainSettings
from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.errors import ModelError, RunError
from segpipe.evaluation.measure import evaluate
from segpipe.inspection.object_sample import look_at_objects
from segpipe.models.bundle import load_bundle
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION, normalise
from segpipe.training import stages
from segpipe.training.beginning import Beginning, begin, read_generator
from segpipe.training.checkpoint import Checkpoint, save_checkpoint
from segpipe.training.gan_loop import averaging
from segpipe.training.recipe import PRETRAINED_SHARE, choose_recipe, make_optimizers
from segpipe.training.run import TrainResult, train

SIZE = (64, 96)
HEAD = "decode_head.classifier"


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("discs")
    return str(write_set(root, {"train": 11, "val": 4, "calibration": 5}, size=SIZE))


@pytest.fixture(scope="module")
def other_classes(discs: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images, their classes under other names."""
    root = tmp_path_factory.mktemp("others") / "data"
    shutil.copytree(discs, root)
    return str(change(root, "dataset.json", classes=["field", "ball"]))


@pytest.fixture(scope="module")
def taught(discs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tells disc from ground, its outputs in this order."""
    return write_taught_segformer(tmp_path_factory.mktemp("networks") / "segformer", discs)


@pytest.fixture
def copied(taught: Path, tmp_path: Path) -> Path:
    shutil.copytree(taught, tmp_path / "network")
    return tmp_path / "network"


def settings(data: str, generator: Path | str, model: Path | str, **others: Any) -> TrainSettings:
    values: dict[str, Any] = {"epochs": 2, "batch_size": 4, "device": "cpu", "seed": 5} | others
    return TrainSettings(data=data, generator=str(generator), model=str(model), **values)


@pytest.fixture(scope="module")
def tuned(other_classes: str, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(settings(other_classes, taught, tmp_path_factory.mktemp("models") / "model"))


def change(folder: Path, file: str, **values: Any) -> Path:
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(content))
    return folder


def images_of(data: str, split: str = "calibration") -> list[np.ndarray]:
    dataset = open_dataset(data)
    return [read_sample(dataset, sample)[0] for sample in list_samples(dataset, split)]


def theirs(folder: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    """The masks that transformers makes with the files in a folder, by itself."""
    from transformers import AutoModelForSemanticSegmentation
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    network = AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True).eval()
    processor = SegformerImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        outputs = network(**processor(images, return_tensors="pt"))
    masks = processor.post_process_semantic_segmentation(outputs, [SIZE] * len(images))
    return [mask.numpy() for mask in masks]


def test_masks_are_those_that_transformers_makes_with_the_files_in_the_bundle(
    other_classes: str, tuned: TrainResult
) -> None:
    images = images_of(other_classes)
    ours = [labeled.mask for labeled in segpipe.load_model(tuned.model, "cpu").label(images)]
    expected = theirs(Path(tuned.model) / "generator", images)
    assert np.mean(np.stack(ours) == np.stack(expected)) >= 0.999
    assert {0, 1} == set(np.unique(ours))


def test_the_bundle_is_as_adopts_and_knows_of_the_game(taught: Path, tuned: TrainResult) -> None:
    bundle, folder = load_bundle(tuned.model, "cpu"), Path(tuned.model)
    kept = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [name for name in kept if name.startswith(("generator", "test_vector"))] == [
        "generator/config.json",
        "generator/model.safetensors",
        "generator/preprocessor_config.json",
        "test_vector.safetensors",
    ]
    assert (bundle.spec.architecture, bundle.spec.shown_masks) == ("transformers", "hard")
    assert bundle.spec.belief_kind == "plain"
    assert bundle.discriminator.adversary is not None
    assert bundle.card.versions.keys() >= {"transformers"}
    assert str(taught) not in (folder / "model.json").read_text()
    before, after = (load_file(place / "model.safetensors") for place in (taught, folder / "generator"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))


def test_what_was_measured_in_training_is_what_the_bundle_does(
    other_classes: str, tuned: TrainResult
) -> None:
    measured = evaluate(tuned.model, other_classes, "val", "cpu")
    assert measured.mean_iou == pytest.approx(tuned.mean_iou, abs=1e-3)
    assert measured.scores["adversarial"] is not None


# --- the head -----------------------------------------------------------------------------------------------


def begun(data: str, generator: Path, **others: Any) -> Beginning:
    wanted, dataset = settings(data, generator, "unused", **others), open_dataset(data)
    return begin(wanted, read_generator(wanted), dataset, *look_at_objects(dataset, "train"))


def test_a_head_of_the_same_classes_is_kept_in_the_data_sets_order(discs: str, taught: Path) -> None:
    """Before any step the outputs are the folder's, whose two classes stand the other way round."""
    from transformers import SegformerForSemanticSegmentation

    beginning, network = begun(discs, taught), SegformerForSemanticSegmentation.from_pretrained(taught).eval()
    images = torch.randint(256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(1))
    given = normalise(images, MEAN, STANDARD_DEVIATION)  # which is the folder's own, ImageNet's
    with torch.no_grad():
        expected = network(pixel_values=given).logits.flip(1)
        torch.testing.assert_close(beginning.generator.eval()(given), expected, atol=1e-4, rtol=1e-4)
    assert beginning.pretrained == {name for name, _ in beginning.generator.named_parameters()}
    foreign = beginning.spec.foreign
    assert foreign is not None
    assert (foreign.classes, foreign.class_map) == (("disc", "ground"), (1, 0))


def test_a_head_of_other_classes_begins_anew_and_the_rest_is_kept(
    other_classes: str, taught: Path, tuned: TrainResult
) -> None:
    from transformers import SegformerForSemanticSegmentation

    beginning, network = (
        begun(other_classes, taught),
        SegformerForSemanticSegmentation.from_pretrained(taught),
    )
    before = {f"network.network.{name}": value for name, value in network.named_parameters()}
    after = dict(beginning.generator.named_parameters())
    new = {f"network.network.decode_head.classifier.{name}" for name in ("weight", "bias")}
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} == new
    assert beginning.pretrained == after.keys() - new
    config = json.loads((Path(tuned.model) / "generator" / "config.json").read_text())
    assert config["id2label"] == {"0": "field", "1": "ball"}


def test_a_head_of_more_classes_gives_them_all(taught: Path, tmp_path: Path) -> None:
    names = ("ground", "disc", "a third")
    data = str(write_set(tmp_path / "data", {"train": 5, "val": 2}, size=SIZE, classes=names))
    model = train(settings(data, taught, tmp_path / "model", epochs=1)).model
    labeler = segpipe.load_model(model, "cpu")
    assert labeler.bundle.spec.classes == names
    assert len(labeler.label(images_of(data, "val"))[0].class_fractions) == 3


def test_a_new_head_may_be_missing_in_the_folder_and_nothing_else(
    discs: str, other_classes: str, copied: Path
) -> None:
    tensors = load_file(copied / "model.safetensors")

    def keep(*absent: str) -> None:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(absent)}
        save_file(kept, copied / "model.safetensors", {"format": "pt"})

    keep(HEAD)
    assert begun(other_classes, copied).generator is not None
    with pytest.raises(ModelError, match=r"lack 2 of its tensors \(decode_head\.classifier\.bias\)"):
        begun(discs, copied)
    keep(HEAD, "decode_head.linear_fuse")
    with pytest.raises(ModelError, match=r"lack 1 of its tensors \(decode_head\.linear_fuse"):
        begun(other_classes, copied)


def test_labels_that_were_counted_from_one_are_counted_from_zero_by_a_new_head(
    other_classes: str, copied: Path
) -> None:
    change(copied, "preprocessor_config.json", reduce_labels=True)
    processor = json.loads(begun(other_classes, copied).processor or b"")
    assert "reduce_labels" not in processor
    assert processor["do_reduce_labels"] is False


@pytest.mark.parametrize("head", ["upernet", "upernet-swin", "mobilenet", "beit", "dpt"])
def test_every_head_of_the_list_learns_and_comes_back(discs: str, tmp_path: Path, head: str) -> None:
    """One epoch whose last batch is a single image, a checkpoint after it, and the saved folder's masks."""
    torch.manual_seed(0)
    network, stride, one_size = heads()[head]
    network.eval().save_pretrained(tmp_path / "network")
    image_processor(image_mean=[0.5] * 3, image_std=[0.4] * 3).save_pretrained(tmp_path / "network")
    result = train(settings(discs, tmp_path / "network", tmp_path / "model", epochs=1, batch_size=8))
    bundle = load_bundle(result.model, "cpu")
    assert bundle.spec.foreign is not None
    assert (bundle.spec.foreign.output_stride, bundle.spec.foreign.one_size) == (stride, one_size)
    size = (64, 64) if one_size else SIZE
    assert bundle.spec.working_size == size
    kind = type(network)
    saved = kind.from_pretrained(tmp_path / "model" / "generator", local_files_only=True).eval()
    images = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = saved(pixel_values=(images / 255 - 0.5) / 0.4).logits
        ours = bundle.generator(normalise(images, MEAN, STANDARD_DEVIATION))
    assert expected.shape[1] == 2
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


# --- the game -----------------------------------------------------------------------------------------------


def test_what_comes_trained_changes_at_a_tenth_of_the_rate(other_classes: str, taught: Path) -> None:
    """Adam's first step is the rate, whatever the gradient."""
    beginning = begun(other_classes, taught)
    generator, rate = beginning.generator.train(), 1e-3
    recipe = choose_recipe(settings(other_classes, taught, "m", learning_rate=rate), steps=10)
    optimizer, _ = make_optimizers(generator, torch.nn.Linear(1, 1), recipe, beginning.pretrained)
    before = {name: value.detach().clone() for name, value in generator.named_parameters()}
    generator(torch.rand(2, 3, *SIZE)).square().mean().backward()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    moved = {
        name: float((value.detach() - before[name]).abs().max())
        for name, value in generator.named_parameters()
    }
    known = [moved[name] for name in beginning.pretrained]
    new = [moved[name] for name in moved.keys() - beginning.pretrained]
    assert max(known) == pytest.approx(PRETRAINED_SHARE * rate, rel=0.01)
    assert new == pytest.approx([rate, rate], rel=0.01)


def test_an_average_leaves_whole_numbers_whole() -> None:
    """As the table of a Swin's relative positions, which a mean of equal numbers would round down."""
    average = averaging(0.9)
    floats, indices = [torch.zeros(3)], [torch.arange(1000)]
    average(floats, [torch.ones(3)], 1)
    average(indices, [torch.arange(1000)], 1)
    torch.testing.assert_close(floats[0], torch.full((3,), 0.1))
    assert torch.equal(indices[0], torch.arange(1000))


def test_the_published_recipe_goes_with_it_too(other_classes: str, taught: Path, tmp_path: Path) -> None:
    recipe = {"objective": "adversarial", "gan_loss": "wgan-gp"}
    result = train(settings(other_classes, taught, tmp_path / "model", epochs=1, **recipe))
    bundle = load_bundle(result.model, "cpu")
    assert bundle.spec.shown_masks == "soft"
    assert evaluate(result.model, other_classes, "val", "cpu").scores["adversarial"] is not None


# `segpipe train` that is killed, as the kernel would, after the checkpoint of this number.
KILLED_TRAINING = """
import os, signal, sys
from segpipe.cli import main
from segpipe.training import stages
save_checkpoint, left = stages.save_checkpoint, int(sys.argv.pop(1))
def keep(model_url, checkpoint):
    global left
    save_checkpoint(model_url, checkpoint)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
stages.save_checkpoint = keep
main()
"""


def test_a_training_killed_in_the_game_and_resumed_gives_the_same_weights(
    other_classes: str, taught: Path, tuned: TrainResult, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    options = ["--data", other_classes, "--model", str(broken), "--generator", str(taught), "--seed", "5"]
    options += ["--epochs", "2", "--batch-size", "4", "--device", "cpu"]
    command = [sys.executable, "-c", KILLED_TRAINING, "1", "train", *options]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (broken / "model.json").exists()
    resumed = train(settings(other_classes, f"{taught}/", broken, resume=True))
    assert resumed.model_id == tuned.model_id
    for name in ("generator/model.safetensors", "discriminator.safetensors", "history.csv", "judging.csv"):
        assert (broken / name).read_bytes() == (Path(tuned.model) / name).read_bytes(), name


def unfinished(data: str, generator: Path, model: Path) -> None:
    """Leave a checkpoint as a kill after the first epoch leaves it."""

    def stop(model_url: str, checkpoint: Checkpoint) -> None:
        save_checkpoint(model_url, checkpoint)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings(data, generator, model))


def test_another_network_in_the_folder_is_not_resumed(
    other_classes: str, copied: Path, tmp_path: Path
) -> None:
    unfinished(other_classes, copied, tmp_path / "model")
    resumed = {"data": other_classes, "model": tmp_path / "model", "resume": True}
    with pytest.raises(RunError, match=r"cannot resume .*: generator differ"):
        train(settings(generator=tmp_path / "elsewhere", **resumed))
    change(copied, "config.json", hidden_dropout_prob=0.5)
    with pytest.raises(RunError, match="holds another network than when the training began"):
        train(settings(generator=copied, **resumed))


# --- what is refused ----------------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def more_outputs_than_weights(folder: Path) -> None:
    change(folder, "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})


def with_config(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: change(folder, "config.json", **values)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "holds pytorch_model.bin and no model.safetensors"),
        (more_outputs_than_weights, "transformers cannot load the generator"),
        (with_config(architectures=["SegformerForImageClassification"]), "(it classifies whole images)"),
        (with_config(auto_map={"AutoConfig": "planted.Config"}), "asks for code of its own (auto_map)"),
        (with_config(attn_implementation="kernels-community/flash"), "asks for an attention of its own"),
        (lambda folder: shutil.rmtree(folder), "is not there"),
        (lambda folder: change(folder, "preprocessor_config.json", do_center_crop=True), "crops images"),
    ],
)
def test_a_folder_that_adopt_refuses_is_refused_in_the_same_words(
    other_classes: str, copied: Path, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(copied)
    with pytest.raises(ModelError) as caught:
        train(settings(other_classes, copied, tmp_path / "model"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_files_that_are_no_folder_are_refused(other_classes: str, tmp_path: Path) -> None:
    onnx = write_onnx(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="cannot be trained on: give a transformers folder"):
        train(settings(other_classes, onnx, tmp_path / "model"))
    with pytest.raises(ModelError, match="can run code"):
        train(settings(other_classes, tmp_path / "net.pt", tmp_path / "model"))


def test_a_network_of_one_size_is_trained_at_no_other(discs: str, tmp_path: Path) -> None:
    network, _, _ = heads()["dpt"]
    network.save_pretrained(tmp_path / "network")
    image_processor().save_pretrained(tmp_path / "network")
    with pytest.raises(ModelError, match="takes images of 64x64 only: leave out --image-size"):
        train(settings(discs, tmp_path / "network", tmp_path / "model", image_size="64x96"))


@pytest.mark.parametrize("architecture", ["unet-ibn", "unet", "plain"])
def test_architecture_and_generator_exclude_each_other(
    taught: Path, capsys: pytest.CaptureFixture[str], architecture: str
) -> None:
    options = ["--data", "d", "--model", "m", "--generator", str(taught), "--architecture", architecture]
    assert cli.run(["train", *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("--architecture and --generator both say what the generator is: give one of them")


def test_without_the_extra_one_line_says_what_to_install(
    other_classes: str,
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    options = ["--data", other_classes, "--generator", str(taught), "--model", str(tmp_path / "model")]
    assert cli.run(["train", *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install 'segpipe[transformers]'")
