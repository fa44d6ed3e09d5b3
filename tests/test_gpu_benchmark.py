"""The one command that measures a GPU, tried on the CPU: what a part costs the others, and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu")


@pytest.mark.parametrize(
    ("then", "seconds", "ended"),
    [
        ("pass", 60.0, None),
        (
            "raise RuntimeError('CUDA error: no kernel image')",
            60.0,
            "failed: RuntimeError: CUDA error: no kernel image",
        ),
        ("subprocess.Popen([sys.executable, '-c', CHILD]); time.sleep(600)", 5.0, "not done after its 5 s"),
    ],
    ids=["done", "failed", "late"],
)
def test_a_part_that_fails_or_is_late_keeps_its_figures_and_leaves_nothing_running(
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    seconds: float,
    ended: str | None,
) -> None:
    job, child = gpu.Job(tmp_path, "cpu", True), tmp_path / "child"
    program = f"""if True:
        import json, subprocess, sys, time
        open({str(gpu._kept(job, "a part"))!r}, "w").write(json.dumps({{"images": 8}}))
        CHILD = "import os, time; open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        {then}
    """
    monkeypatch.setattr(gpu, "_command", lambda *_: [sys.executable, "-c", program])
    figures = gpu.measured_within(job, "a part", seconds)
    assert figures == {"images": 8} | ({} if ended is None else {"ended": ended})
    if child.exists() and child.read_text():
        assert gone(int(child.read_text()))


def gone(process: int) -> bool:
    """Whether a process that was killed has ended; at most a minute is waited for it."""
    for _ in range(600):
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.benchmark
def test_the_whole_command_runs_on_a_cpu_and_writes_one_file(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny", "--seconds", "1800"]
    subprocess.run([*command, "--results", str(tmp_path)], check=True, cwd=tmp_path, env=os.environ)
    (result,) = tmp_path.iterdir()
    figures = json.loads(result.read_text())
    parts = {name: part for name, part in figures.items() if isinstance(part, dict) and name != "machine"}
    assert list(parts) == ["training", "agreement with the CPU", "networks alone", "throughput at 128x96"]
    assert not [part["ended"] for part in parts.values() if "ended" in part]
    assert parts["agreement with the CPU"]["pixels alike, mean"] == 1.0
    assert parts["agreement with the CPU"]["largest difference of scores"] == 0.0
    rates = ["networks and masks alone", "decode alone", "DataLoader loop", "segpipe, 1 on the device"]
    assert all(parts["throughput at 128x96"][rate] > 0 for rate in [*rates, "segpipe, 2 on the device"])
