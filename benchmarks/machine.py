"""The results file of a benchmark: its figures, the day, and the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, figures: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Keep figures as NAME.json in a folder, and print that."""
    measured = {"date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**measured, **figures}, indent=1) + "\n")
    click.echo(f"written to {name}.json")


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, device, versions; nothing that names the host."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_bytes(process: int) -> int:
    """Most resident memory of a process so far; 0 once it has ended.

    VmHWM of proc(5); not ru_maxrss, which a process inherits from the one that starts it.
    """
    status = Path(f"/proc/{process}/status").read_text()
    peaks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    return peaks[0] if peaks else 0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
