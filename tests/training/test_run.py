"""`train` from a data set to a bundle: repeatable, resumable after a real kill, clear about what is wrong."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from segpipe import storage
from segpipe.config import TrainSettings
from segpipe.errors import RunError
from segpipe.training.pixels import choose_working_size
from segpipe.training.recipe import choose_epochs, rate_factor
from segpipe.training.run import train


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


def test_a_training_killed_in_the_middle_and_resumed_ends_in_the_same_place(
    streets: str, tmp_path: Path
) -> None:
    whole = train(settings(streets, tmp_path / "whole", epochs=8))
    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "segpipe", "train", "--data", streets, "--model", str(broken)]
    options = ["--epochs", "8", "--batch-size", "4", "--device", "cpu", "--seed", "5"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (broken / "checkpoint.safetensors").exists():
        assert process.poll() is None, "the training ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "model.json").exists()
    resumed = train(settings(streets, broken, epochs=8, resume=True))
    assert resumed.model_id == whole.model_id
    assert resumed.best_epoch == whole.best_epoch
    assert (broken / "history.csv").read_bytes() == (tmp_path / "whole" / "history.csv").read_bytes()
    assert not (broken / "checkpoint.safetensors").exists()


def test_resuming_with_other_settings_names_what_differs(streets: str, tmp_path: Path) -> None:
    unfinished(streets, tmp_path / "m")
    with pytest.raises(RunError, match=r"cannot resume .*: gan_loss, seed differ"):
        train(settings(streets, tmp_path / "m", resume=True, seed=6, gan_loss="hinge"))


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


def unfinished(streets: str, model: Path) -> None:
    """Leave a checkpoint as a kill between the last epoch and the bundle leaves it."""
    train(settings(streets, model, epochs=1))
    for name in ("model.json", "generator.safetensors", "discriminator.safetensors"):
        (model / name).unlink()
    from segpipe.datasets import open_dataset
    from segpipe.training.checkpoint import save_checkpoint
    from segpipe.training.loop import Training
    from segpipe.training.pixels import load_pixels
    from segpipe.training.run import _make_spec

    chosen = settings(streets, model)
    dataset = open_dataset(streets)
    spec = _make_spec(chosen, dataset)
    with load_pixels(dataset, "val", spec.working_size) as pixels:
        training = Training.begin(chosen, spec, pixels, pixels, "cpu")
        save_checkpoint(str(model), training.checkpoint(training.fresh_progress()))


@pytest.mark.parametrize(
    ("architecture", "objective", "gan_loss"),
    [
        ("plain", "adversarial", "bce"),
        ("unet", "adversarial", "wgan-gp"),
        ("unet", "supervised", "lsgan"),
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
        "curves.png",
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
