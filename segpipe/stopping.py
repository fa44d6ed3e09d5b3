"""Stop in order when a signal asks for it, and in any case within seconds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(BaseException):
    """A signal asked the process to stop; like KeyboardInterrupt it is no failure that work may handle."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.status = 128 + signal_number  # what a shell reports for a process that a signal ended


@contextmanager
def stop_on_signals(at_the_end: Callable[[int], object]) -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise StoppedError, so that the work unwinds and ends what is under way.

    Where that takes more than 5 s, say in a request that hangs, or at a second signal, the process ends on
    the spot: at_the_end is called with the exit status first. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end = _Ending(at_the_end)
    # A shell lets its background jobs ignore SIGINT, and that is to stay so.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end.on_signal)
    try:
        yield
    finally:
        end.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ending:
    def __init__(self, at_the_end: Callable[[int], object]) -> None:
        self._at_the_end = at_the_end
        self._timer: threading.Timer | None = None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        stop = StoppedError(number)
        if self._timer is not None:
            self._end_now(stop.status)
        self._timer = threading.Timer(GRACE_SECONDS, self._end_now, [stop.status])
        self._timer.daemon = True
        self._timer.start()
        raise stop

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end_now(self, status: int) -> NoReturn:
        try:
            self._at_the_end(status)
        finally:
            os._exit(status)
