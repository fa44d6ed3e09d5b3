"""What segpipe says while it works, in the log and on the pages of the Prefect run."""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from segpipe.errors import RunError
from segpipe.logs import add_ids, text_formatter
from segpipe.progress import Advance, track
from segpipe.redaction import redact

PROGRESS_SECONDS = 5.0
LAST_PROGRESS_SECONDS = 10.0
PROGRESS_KEY = "label-progress"


class _ToRunLog(logging.Handler):
    def __init__(self, run_logger: logging.LoggerAdapter[logging.Logger] | logging.Logger) -> None:
        super().__init__()
        self._run_logger = run_logger
        self.setFormatter(text_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        shard = getattr(record, "shard", None)
        about = "" if shard is None else f"shard {shard}: "
        self._run_logger.log(record.levelno, "%s", redact(about + self.format(record)))


@contextmanager
def library_log() -> Iterator[None]:
    """Send what the library logs, from any of its threads, to the log of this run, without secrets."""
    library, handler = logging.getLogger("segpipe"), _ToRunLog(get_run_logger())
    level, propagate = library.level, library.propagate
    handler.addFilter(add_ids)
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    library.propagate = False  # the run's logger prints already; the root logger would print it again
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)
        library.propagate = propagate


@contextmanager
def without_secrets() -> Iterator[None]:
    """Raise an error whose text holds a secret as one that does not: Prefect stores and shows it."""
    try:
        yield
    except Exception as error:
        if redact(str(error)) == str(error):
            raise
        raise RunError(f"{type(error).__name__}: {redact(str(error))}") from None


@dataclass
class _OnPageAndTerminal:
    """Advances the bar at once and the artifact every few seconds, in a thread of its own.

    A server that is away keeps a request waiting for a minute, and the work must not wait for it.
    """

    bar: Advance
    artifact: UUID
    total: int
    thread: ThreadPoolExecutor
    done: int = 0
    shown_at: float = field(default_factory=time.monotonic)
    showing: Future[None] | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        self.bar.advance(count, note)
        self.done += count
        idle = self.showing is None or self.showing.done()
        if idle and time.monotonic() - self.shown_at >= PROGRESS_SECONDS:
            self.show()

    def show(self) -> Future[None]:
        self.shown_at = time.monotonic()
        share = 100 * self.done / self.total if self.total else 100.0
        context = contextvars.copy_context()
        self.showing = self.thread.submit(context.run, _show_on_page, self.artifact, share)
        return self.showing


def _show_on_page(artifact: UUID, percent: float) -> None:
    try:
        update_progress_artifact(artifact, percent)
    except httpx.HTTPError as error:
        get_run_logger().warning("the progress is not on the run's page: %s", redact(str(error)))


@contextmanager
def progress_artifact(total: int, description: str) -> Iterator[Advance]:
    """Follow work of a known size on the run's page, and on stderr as everywhere."""
    text = f"{description}: {total} images"
    artifact: Any = create_progress_artifact(0.0 if total else 100.0, key=PROGRESS_KEY, description=text)
    thread = ThreadPoolExecutor(1)
    try:
        with track(total, description) as bar:
            shown = _OnPageAndTerminal(bar, artifact, total, thread)
            yield shown
            wait([shown.show()], LAST_PROGRESS_SECONDS)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
