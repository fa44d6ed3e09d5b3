"""A training that comes to nothing ends in one line, and what it kept before stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from segpipe.cli import run
from segpipe.config import TrainSettings
from segpipe.errors import ModelError, RunError
from segpipe.models.bundle import encode_weights
from segpipe.training.checkpoint import load_checkpoint
from segpipe.training.divergence import require_bounded_loss, require_numbers, require_sound
from segpipe.training.run import train

HELP = "train again"


def failed(streets: str, model: Path, **others: object) -> str:
    values: dict[str, object] = {"epochs": 3, "batch_size": 4, "device": "cpu", "seed": 5}
    with pytest.raises(RunError) as caught:
        train(TrainSettings(data=streets, model=str(model), **(values | others)))  # type: ignore[arg-type]
    assert not (model / "model.json").exists()
    assert not (model / "generator.safetensors").exists()
    return str(caught.value)


def test_a_training_that_explodes_says_when_and_what_helps(
    streets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", streets, "--model", str(tmp_path / "m"), "--epochs", "2", "--device", "cpu"]
    assert run(["train", *options, "--learning-rate", "1e12"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segpipe: ")]
    assert line.startswith("segpipe: training diverged in epoch 1 of 2: pixel_loss is ")
    assert line.endswith("smaller --learning-rate (it was 1e+12) or --adversarial-weight (0.01)")
    assert list(tmp_path.iterdir()) == []


def test_a_training_whose_weights_are_numbers_and_far_too_large_has_come_to_nothing(
    streets: str, tmp_path: Path
) -> None:
    said = failed(streets, tmp_path / "m", learning_rate=1e6, epochs=1)
    assert re.match(r"training diverged in epoch 1 of 1: pixel_loss is [0-9.e+]+, that of guessing ", said)


@pytest.mark.parametrize(
    ("weight", "what"),
    [(1e38, "the generator's optimiser's "), (1e300, "pixel_loss is nan; ")],  # 1e300 is no float32
)
def test_a_term_beyond_all_bounds_ends_the_training_at_its_epoch(
    streets: str, tmp_path: Path, weight: float, what: str
) -> None:
    """The adversarial term counts after a tenth of the training: not yet in the first of ten epochs."""
    said = failed(streets, tmp_path / "m", objective="hybrid", adversarial_weight=weight, epochs=10)
    assert said.startswith(f"training diverged in epoch 2 of 10: {what}")
    assert said.endswith("; the checkpoint of epoch 1 stays")
    kept = load_checkpoint(str(tmp_path / "m"))
    assert kept is not None
    assert kept.data["epoch"] == 1
    assert all(tensor.isfinite().all() for group in kept.tensors.values() for tensor in group.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_loss_may_be_no_number(value: float) -> None:
    require_numbers({"pixel_loss": 1.0, "realness": 0.0}, "epoch 3 of 9", HELP)
    with pytest.raises(RunError, match=f"diverged in epoch 3 of 9: realness is {value}; {HELP}"):
        require_numbers({"pixel_loss": 1.0, "realness": value}, "epoch 3 of 9", HELP)


def test_a_pixel_loss_is_held_against_that_of_guessing() -> None:
    """Among 3 classes a guess loses log 3 + 1 = 2.099, ten times that is 20.99."""
    require_bounded_loss(20.98, 3, "epoch 1 of 2", HELP)
    with pytest.raises(RunError, match=r"pixel_loss is 21, that of guessing 2\.1;"):
        require_bounded_loss(21.0, 3, "epoch 1 of 2", HELP)


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "values that are no numbers"), (2e4, r"values up to 2e\+04")]
)
def test_no_weight_may_be_no_number_or_far_too_large(value: float, said: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    network[1].running_var.fill_(1e9)  # what it saw, no weight
    require_sound({"generator": network}, "epoch 1 of 2", HELP)
    with torch.no_grad():
        network[0].bias[1] = value
    with pytest.raises(RunError, match=rf"epoch 1 of 2: the generator's 0\.bias holds {said}"):
        require_sound({"generator": network}, "epoch 1 of 2", HELP)


def test_weights_that_are_no_numbers_are_not_saved() -> None:
    network = nn.Conv2d(1, 2, 1)
    encode_weights(network)
    with torch.no_grad():
        network.weight[0] = float("inf")
    with pytest.raises(ModelError, match=r"no numbers \(in weight\) are not saved"):
        encode_weights(network)
