"""A training in two processes, as torchrun starts them: one result, and none waits for one that is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.server
SECONDS = 600
# After stage 2 each process tells what its networks have come to; the first one's score is fitted later.
PROGRAM = """
import hashlib, os, sys
from segpipe.cli import main
from segpipe.training import judge_loop

learn = judge_loop.Scoring._learn_familiarity
run = judge_loop.Scoring.run

def told(scoring, keep):
    judge_loop.Scoring._learn_familiarity = lambda self: tell(self) or learn(self)
    run(scoring, keep)
    if not scoring.processes.is_first:
        tell(scoring)

def tell(scoring):
    digest = hashlib.sha256()
    for network in (scoring.teachers.generator, *scoring.teachers.earlier, scoring.judge):
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
    with open(os.environ["TELL"], "w") as file:
        file.write(digest.hexdigest())

judge_loop.Scoring.run = told
sys.exit(main())
"""


def start(arguments: list[str], folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TELL": str(folder / f"networks-{rank}")}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "train", *arguments],
        env={**os.environ, **places, **ranks},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_both(data: str, model: Path, *more: str) -> list[subprocess.Popen[str]]:
    settings = ["--epochs", "3", "--batch-size", "4", "--device", "cpu", "--seed", "5", "--json"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    model.parent.mkdir(exist_ok=True)
    arguments = ["--data", data, "--model", str(model), *settings, *more]
    return [start(arguments, model.parent, rank, port) for rank in range(2)]


def finish(processes: list[subprocess.Popen[str]]) -> tuple[str, str]:
    """What both have printed, once they have ended well."""
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[1] == ("", "")  # the second one follows without a word
    return said[0]


def test_both_have_the_same_networks_and_a_kill_and_a_resume_end_in_the_same_model(
    streets: str, tmp_path: Path
) -> None:
    unbroken = json.loads(finish(start_both(streets, tmp_path / "whole" / "model"))[0])
    told = [(tmp_path / "whole" / f"networks-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]

    model = tmp_path / "broken" / "model"
    first, second = start_both(streets, model)
    wait_for(model / "checkpoint.safetensors", first)
    second.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=SECONDS)
    second.communicate(timeout=SECONDS)
    assert first.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("segpipe:")]
    assert lines == said.splitlines()[-1:]
    assert "another process of this training has ended" in lines[0]
    assert lines[0].endswith("run all of them again with --resume")
    resumed = json.loads(finish(start_both(streets, model, "--resume"))[0])
    assert resumed["model_id"] == unbroken["model_id"]
    assert resumed["mean_iou"] == unbroken["mean_iou"]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
