"""`segpipe label` ends with status 1 when too much of a run failed, however small, and says so each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from random_model import write_random_model

from segpipe.cli import run


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_random_model(str(tmp_path / "model"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three files that are no images."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_text("no image")
    return folder


def label(raw: Path, model: str, *options: str) -> int:
    output = str(raw.parent / "out")
    return run(["label", str(raw), output, "--model", model, "--device", "cpu", *options])


def test_a_run_in_which_everything_failed_exits_1_with_one_line_and_keeps_its_rows(
    raw: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(raw, model, "--run-id", "night") == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("segpipe: ")]
    assert line.startswith("segpipe: 3 of the 3 images of run night failed (3 unreadable), more than ")
    assert "failed    unreadable  3       100.0%" in said.out
    assert list(pd.read_parquet(raw.parent / "out" / "manifests").reason) == ["unreadable"] * 3


def test_the_same_run_again_repeats_the_verdict_and_the_next_has_nothing_to_judge(
    raw: Path, model: str
) -> None:
    assert label(raw, model, "--run-id", "night") == 1
    assert label(raw, model, "--run-id", "night") == 1
    assert label(raw, model, "--run-id", "next") == 0
    assert len(pd.read_parquet(raw.parent / "out" / "manifests")) == 3


def test_a_rate_of_1_never_fails(raw: Path, model: str) -> None:
    assert label(raw, model, "--max-failure-rate", "1") == 0


def test_the_result_is_printed_before_the_verdict(
    raw: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(raw, model, "--json") == 1
    assert json.loads(capsys.readouterr().out)["failed"] == 3


def test_plan_and_label_try_again_what_the_user_names(
    raw: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label(raw, model)
    capsys.readouterr()
    ask = ["plan", str(raw), str(raw.parent / "out"), "--model", model, "--json"]
    assert run(ask) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 0
    assert run([*ask, "--retry", "denied", "--retry", "unreadable"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["images"], planned["retried"]) == (3, 3)
    assert label(raw, model, "--retry", "unreadable", "--json") == 1
    assert json.loads(capsys.readouterr().out)["retried"] == 3
    assert run([*ask, "--retry", "boredom"]) == 2


def test_the_verdict_names_an_image_for_each_of_the_commonest_reasons(
    raw: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):  # of the ten failed images that a summary holds each reason has one
        (raw / f"a{number:02d}.jpg").write_text("no image")
    (raw / "z.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    Image.fromarray(np.zeros((2000, 10, 3), np.uint8)).save(raw / "tall.png")
    assert label(raw, model, "--run-id", "night", "--max-image-pixels", "10000") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segpipe: ")]
    assert f"unreadable, for example {raw}/0.jpg: " in line
    assert (
        f"too_large, for example {raw}/tall.png: " in line or f"unsupported, for example {raw}/z.heic" in line
    )
