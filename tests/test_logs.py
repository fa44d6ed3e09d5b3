"""What a log collector gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from random_model import write_random_model

from segpipe.cli import run
from segpipe.concurrency import ordered_map
from segpipe.logs import _IDS, log_ids


def test_a_labelling_run_logs_json_with_its_id(
    tmp_path: Path, encoded: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(encoded(np.zeros((20, 30, 3), np.uint8)))
    places = [
        str(tmp_path / "raw"),
        str(tmp_path / "out"),
        "--model",
        write_random_model(str(tmp_path / "m")),
    ]
    assert run(["--log-format", "json", "label", *places, "--run-id", "night-1", "--device", "cpu"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (done,) = [record for record in records if record["message"].startswith("labelling: 1 of 1")]
    assert {name: done[name] for name in ("level", "logger", "run_id", "shard")} == {
        "level": "INFO",
        "logger": "segpipe.progress",
        "run_id": "night-1",
        "shard": 0,
    }
    assert datetime.fromisoformat(done["time"]).utcoffset() == timedelta(0)


def test_a_failure_is_a_record_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--log-format", "json", "plan", str(tmp_path), str(tmp_path), "--model", "/absent"]) == 1
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert last["level"] == "ERROR"
    assert "no model at /absent" in last["message"]


def test_ids_reach_the_threads_and_end_with_their_block() -> None:
    with ThreadPoolExecutor(2) as pool, log_ids(run_id="a"):
        with log_ids(shard=3):
            found = list(ordered_map(pool, lambda _: dict(_IDS.get()), range(4), 2))
        after = list(ordered_map(pool, lambda _: dict(_IDS.get()), range(2), 2))
    assert found == [{"run_id": "a", "shard": 3}] * 4
    assert after == [{"run_id": "a"}] * 2
    assert not _IDS.get()
