"""Progress of long work: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segpipe.printable import printable
from segpipe.torchrun import torchrun_place

logger = logging.getLogger(__name__)
LOG_SECONDS = 10.0


class Advance(Protocol):
    """What the work calls as it goes on."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that count more units are done; note is a short word on how it goes."""


@dataclass
class _LogLines:
    description: str
    total: int
    unit: str
    done: int = 0
    said_at: float = field(default_factory=time.monotonic)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.done >= self.total or time.monotonic() - self.said_at >= LOG_SECONDS:
            self.said_at = time.monotonic()
            logger.info("%s: %d of %d %s %s", self.description, self.done, self.total, self.unit, note)


@dataclass(frozen=True)
class _Bar:
    progress: Progress
    task: int

    def advance(self, count: int = 1, note: str = "") -> None:
        self.progress.update(self.task, advance=count, note=printable(note))  # type: ignore[arg-type]


@contextmanager
def track(total: int, description: str, unit: str = "images") -> Iterator[Advance]:
    """Follow work of a known size on stderr, with one bar for all processes of torchrun; call `advance`."""
    description = printable(description)
    if not (sys.stderr.isatty() and torchrun_place().rank == 0):
        yield _LogLines(description, total, unit)
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, progress.add_task(description, total=total, note=""))
