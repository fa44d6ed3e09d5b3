"""`train` from a data set to a bundle: repeatable, resumable after a real kill, clear about what is wrong."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demo.scenes import write_labelled
from segpipe import load_model, storage
from segpipe.config import TrainSettings
from segpipe.errors import RunError
from segpipe.models.bundle import load_bundle
from segpipe.training import stages
from segpipe.training.checkpoint import Checkpoint, save_checkpoint
from segpipe.training.recipe import choose_epochs, rate_factor
from segpipe.training.run import TrainResult, train
from segpipe.working_size import choose_working_size


def settings(data: str, model: str | Path, **others: object) -> TrainSettings:
    values: dict[str, object] = {"epochs": 3, "batch_size": 4, "device": "cpu", "seed": 5}
    return TrainSettings(data=data, model=str(model), **(values | others))  # type: ignore[arg-type]


def test_one_seed_gives_the_same_model_and_another_seed_another(
    streets: str, trained_model: str, tmp_path: Path
) -> None:
    again = train(settings(streets, tmp_path / "again"))
    other = train(settings(streets, tmp_path / "other", seed=6))
    first = json.loads((Path(trained_model) / "model.json").read_text())["model_id"]
    assert again.model_id == first
    assert other.model_id != first


EPOCHS = 5  # and two rounds of stage 2


def checkpoint_name(stage: str, number: int) -> str:
    return f"{stage}-{number}.safetensors"


@dataclass(frozen=True)
class Whole:
    """A training that nothing broke off, and copies of all its checkpoints."""

    model: Path
    result: TrainResult
    checkpoints: Path


@pytest.fixture(scope="module")
def whole(streets: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return train_whole(streets, tmp_path_factory, {"epochs": EPOCHS})


def train_whole(streets: str, tmp_path_factory: pytest.TempPathFactory, others: dict[str, Any]) -> Whole:
    model, checkpoints = tmp_path_factory.mktemp("models") / "whole", tmp_path_factory.mktemp("checkpoints")
    kept: list[str] = []

    def keep(model_url: str, checkpoint: Checkpoint) -> None:
        save_checkpoint(model_url, checkpoint)
        kept.append(checkpoint.data["stage"])
        copied = checkpoints / checkpoint_name(kept[-1], kept.count(kept[-1]))
        shutil.copy(Path(model_url) / "checkpoint.safetensors", copied)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "save_checkpoint", keep)
        result = train(settings(streets, model, **others))
    assert kept == ["adversarial"] * others["epochs"] + ["scoring"] * 2
    return Whole(model, result, checkpoints)


def check_same_model(resumed: TrainResult, whole: Whole) -> None:
    assert resumed.model_id == whole.result.model_id
    assert resumed.best_epoch == whole.result.best_epoch
    for name in ("history.csv", "judging.csv", "generator.safetensors", "discriminator.safetensors"):
        assert (Path(resumed.model) / name).read_bytes() == (whole.model / name).read_bytes(), name
    assert not (Path(resumed.model) / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("stage", "number", "left"),
    [
        ("adversarial", EPOCHS - 1, ["adversarial", "scoring", "scoring"]),
        ("adversarial", EPOCHS, ["scoring", "scoring"]),
        ("scoring", 1, ["scoring"]),
        ("scoring", 2, []),
    ],
    ids=["in the first stage", "between the stages", "in the second stage", "before the bundle"],
)
def test_a_training_resumed_from_any_of_its_checkpoints_does_what_is_left_and_ends_in_the_same_place(
    streets: str,
    tmp_path: Path,
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    number: int,
    left: list[str],
) -> None:
    kept: list[str] = []

    def keep(model_url: str, checkpoint: Checkpoint) -> None:
        save_checkpoint(model_url, checkpoint)
        kept.append(checkpoint.data["stage"])

    monkeypatch.setattr(stages, "save_checkpoint", keep)
    shutil.copy(whole.checkpoints / checkpoint_name(stage, number), tmp_path / "checkpoint.safetensors")
    check_same_model(train(settings(streets, tmp_path, epochs=EPOCHS, resume=True)), whole)
    assert kept == left, "each epoch and round keeps one checkpoint"


AT_SCALE = {"scale": "1", "tile": "64x64", "epochs": 3}


@pytest.fixture(scope="module")
def whole_at_scale(streets: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """As `whole`, of images at their own size, twice as high and wide as a tile."""
    return train_whole(streets, tmp_path_factory, AT_SCALE)


@pytest.mark.parametrize(("stage", "number"), [("adversarial", 2), ("scoring", 1)])
def test_a_training_at_scale_that_is_resumed_ends_in_the_same_place(
    streets: str, tmp_path: Path, whole_at_scale: Whole, stage: str, number: int
) -> None:
    checkpoint = whole_at_scale.checkpoints / checkpoint_name(stage, number)
    shutil.copy(checkpoint, tmp_path / "checkpoint.safetensors")
    # Read anew or from disk, the images are the same.
    resumed = train(settings(streets, tmp_path, resume=True, cache_bytes=0, **AT_SCALE))
    check_same_model(resumed, whole_at_scale)


# `segpipe train` that is killed, as the kernel would, after the first round of stage 2.
KILLED_TRAINING = """
import os, signal
from segpipe.cli import main
from segpipe.training import stages
save_checkpoint = stages.save_checkpoint
def keep(model_url, checkpoint):
    save_checkpoint(model_url, checkpoint)
    if checkpoint.data["stage"] == "scoring":
        os.kill(os.getpid(), signal.SIGKILL)
stages.save_checkpoint = keep
main()
"""


def test_a_training_killed_in_the_second_stage_and_resumed_ends_in_the_same_place(
    streets: str, tmp_path: Path, whole: Whole
) -> None:
    broken = tmp_path / "broken"
    options = ["--data", streets, "--model", str(broken), "--epochs", str(EPOCHS), "--batch-size", "4"]
    command = [sys.executable, "-c", KILLED_TRAINING, "train", *options, "--device", "cpu", "--seed", "5"]
    killed = subprocess.run(command, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (broken / "model.json").exists()
    check_same_model(train(settings(streets, broken, epochs=EPOCHS, resume=True)), whole)


def test_stage_two_begins_afresh_and_leaves_the_games_discriminator_as_it_was(whole: Whole) -> None:
    rounds = list(csv.DictReader(io.StringIO((whole.model / "judging.csv").read_text())))
    # 10 of the 12 images teach the generator; 5 epochs of them, three tenths, in batches of 8.
    assert [row["round"] for row in rounds] == ["1", "2"]
    assert all(math.isfinite(float(value)) for row in rounds for value in row.values())
    bundle = load_bundle(str(whole.model), "cpu")
    before, after = bundle.discriminator.adversary, bundle.discriminator.judge.adversary
    for (name, played), judging in zip(before.named_parameters(), after.parameters(), strict=True):
        assert not torch.allclose(played, judging, atol=0.05), f"{name}: the judge begins afresh"


def test_resuming_with_other_settings_names_what_differs(streets: str, tmp_path: Path) -> None:
    unfinished(streets, tmp_path / "m")
    with pytest.raises(RunError, match=r"cannot resume .*: gan_loss, seed differ"):
        train(settings(streets, tmp_path / "m", resume=True, seed=6, gan_loss="hinge"))


def test_a_training_from_when_another_architecture_was_the_default_goes_on_with_that(
    streets: str, tmp_path: Path
) -> None:
    unfinished(streets, tmp_path / "m", architecture="unet")
    with pytest.raises(RunError, match=r"cannot resume .*: architecture differ"):
        train(settings(streets, tmp_path / "m", resume=True, architecture="plain"))
    train(settings(streets, tmp_path / "m", resume=True))
    assert json.loads((tmp_path / "m" / "model.json").read_text())["spec"]["architecture"] == "unet"


def test_a_training_of_an_architecture_that_was_never_the_default_is_resumed_by_its_name_only(
    streets: str, tmp_path: Path
) -> None:
    unfinished(streets, tmp_path / "m", architecture="plain")
    with pytest.raises(RunError, match=r"cannot resume .*: architecture differ"):
        train(settings(streets, tmp_path / "m", resume=True))


def test_the_same_data_under_another_spelling_is_the_same_data(streets: str, tmp_path: Path) -> None:
    unfinished(streets, tmp_path / "m")
    with pytest.raises(RunError, match=r"cannot resume .*: seed differ"):
        train(settings(f"{streets}/", tmp_path / "m", resume=True, seed=6))


def test_an_unfinished_training_is_not_overwritten_unasked(streets: str, tmp_path: Path) -> None:
    unfinished(streets, tmp_path / "m")
    with pytest.raises(RunError, match="unfinished training: add --resume"):
        train(settings(streets, tmp_path / "m"))


def test_a_finished_model_is_not_overwritten(streets: str, trained_model: str) -> None:
    with pytest.raises(RunError, match="holds a finished model"):
        train(settings(streets, trained_model, resume=True))


def test_a_damaged_checkpoint_is_named(streets: str, tmp_path: Path) -> None:
    unfinished(streets, tmp_path / "m")
    checkpoint = tmp_path / "m" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged: delete it"):
        train(settings(streets, tmp_path / "m", resume=True))


def unfinished(streets: str, model: Path, **others: object) -> None:
    """Leave a checkpoint as a kill after the first epoch leaves it."""

    def stop(model_url: str, checkpoint: Checkpoint) -> None:
        save_checkpoint(model_url, checkpoint)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings(streets, model, **others))


@pytest.mark.parametrize("n_images", [1, 3, 6])
def test_a_handful_of_images_is_enough_to_train(tmp_path: Path, n_images: int) -> None:
    data = str(tmp_path / "data")
    rng = np.random.default_rng(1)
    for split, count in (("train", n_images), ("val", 1)):
        write_labelled(data, split, count, 0, rng, height=32, width=64)
    result = train(settings(data, tmp_path / "m", epochs=1))
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (labeled,) = load_model(result.model, "cpu").label([image])
    assert labeled.mask.shape == (40, 50)
    assert math.isfinite(labeled.discriminator_score)


@pytest.mark.parametrize(
    ("architecture", "objective", "gan_loss"),
    [
        ("plain", "adversarial", "bce"),
        ("unet", "adversarial", "wgan-gp"),
        ("unet-ibn", "supervised", "lsgan"),
        ("plain", "hybrid", "hinge"),
    ],
)
def test_every_recipe_ends_in_a_bundle_with_curves(
    streets: str, tmp_path: Path, architecture: str, objective: str, gan_loss: str
) -> None:
    model = tmp_path / "m"
    names = {"architecture": architecture, "objective": objective, "gan_loss": gan_loss}
    result = train(settings(streets, model, epochs=1, **names))
    rows = list(csv.DictReader(io.StringIO((model / "history.csv").read_text())))
    assert [row["epoch"] for row in rows] == ["1"]
    assert 0 <= float(rows[0]["real_accuracy"]) <= 1
    assert float(rows[0]["validation_mean_iou"]) == pytest.approx(result.mean_iou)
    assert (model / "judging.csv").read_text().splitlines()[1].startswith("1,")
    assert Image.open(model / "curves.png").width > 400
    spec = json.loads((model / "model.json").read_text())["spec"]
    assert spec["shown_masks"] == ("soft" if objective == "adversarial" else "hard")


def test_training_goes_on_any_storage(streets: str, storage_root: str) -> None:
    for found in list(storage.list_objects(streets)):
        storage.put(storage.join(storage_root, f"data/{found.key}"), storage.read_bytes(found.uri))
    model = storage.join(storage_root, "model")
    result = train(settings(storage.join(storage_root, "data"), model, epochs=1))
    card = json.loads(storage.read_bytes(storage.join(model, "model.json")))
    assert card["model_id"] == result.model_id
    assert {found.key for found in storage.list_objects(model)} == {
        "model.json",
        "generator.safetensors",
        "discriminator.safetensors",
        "history.csv",
        "judging.csv",
        "curves.png",
        "seen_images.txt",
    }


def test_the_rate_rises_over_a_tenth_and_falls_to_zero() -> None:
    assert [round(rate_factor(share), 6) for share in (0.0, 0.05, 0.1, 0.55, 1.0)] == [0.1, 0.55, 1, 0.5, 0]


def test_few_images_are_seen_more_often() -> None:
    left_open = TrainSettings(data="d", model="m")
    assert choose_epochs(left_open, 100) == 240
    assert choose_epochs(left_open, 100_000) == 10
    assert choose_epochs(TrainSettings(data="d", model="m", epochs=3), 100) == 3


def test_the_working_size_follows_the_data_and_is_bounded() -> None:
    assert choose_working_size([(360, 480)] * 5) == (256, 352)
    assert choose_working_size([(1024, 2048)] * 5) == (224, 416)
    assert choose_working_size([(20, 20)]) == (32, 32)
    assert choose_working_size([(256, 256)] * 9 + [(1024, 1024)]) == (256, 256)
