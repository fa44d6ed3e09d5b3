"""What a process makes of the place that torchrun gave it; that other launchers' variables change nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from segpipe.cli import run
from segpipe.errors import ModelError, RunError
from segpipe.torchrun import TorchrunPlace
from segpipe.training.processes import own_device

OTHER_LAUNCHER = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
SECOND = OTHER_LAUNCHER | {"TORCHELASTIC_RUN_ID": "none"}
FIRST = SECOND | {"RANK": "0", "LOCAL_RANK": "0"}


def start_as(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "command", "tells"),
    [
        (SECOND, "train", False),
        (FIRST, "train", True),
        (SECOND, "label", True),
        (OTHER_LAUNCHER, "train", True),
        (OTHER_LAUNCHER, "label", True),
    ],
)
def test_of_several_processes_only_those_that_follow_in_a_training_are_quiet(
    environment: dict[str, str],
    command: str,
    tells: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_as(environment, monkeypatch)
    assert run([command, "--help"]) == 0
    logging.getLogger("segpipe.some.module").info("what is going on")
    logging.getLogger("segpipe.some.module").error("what went wrong")
    said = capsys.readouterr().err
    assert ("what is going on" in said) == tells
    assert "what went wrong" in said


def test_adopting_in_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start_as(FIRST, monkeypatch)
    folders = ["--data", str(tmp_path), "--model", str(tmp_path / "model")]
    assert run(["adopt", str(tmp_path / "network.onnx"), *folders, "--split", "val"]) == 1
    assert capsys.readouterr().err == (
        "segpipe: segpipe adopt works in one process, torchrun has started 2: run it without torchrun\n"
    )


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_one_gpu_for_several_processes_of_a_training_is_refused(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start_as(FIRST, monkeypatch)
    folders = ["--data", str(tmp_path), "--model", str(tmp_path / "model")]
    assert run(["train", *folders, "--device", device]) == 1
    assert f"segpipe: --device {device} is one GPU, and torchrun has started 2" in capsys.readouterr().err


def test_each_process_takes_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    place = TorchrunPlace(rank=5, count=8, local_rank=1)
    assert own_device(place, "cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(place, "cuda") == "cuda:1"
    assert own_device(place, "auto") == "cuda:1"
    with pytest.raises(RunError, match="give --device cuda, each takes its own"):
        own_device(place, "cuda:1")
    with pytest.raises(ModelError, match="no CUDA device 2 here, 2 in all"):
        own_device(TorchrunPlace(6, 8, 2), "cuda")
