"""Stop in order when a signal asks for it, and in any case within seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 5.0
_AGAIN_SECONDS = 0.05
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(BaseException):
    """A signal asked the process to stop; like KeyboardInterrupt it is no failure that work may handle."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.status = 128 + signal_number  # what a shell reports for a process that a signal ended


@contextmanager
def stop_on_signals(at_the_end: Callable[[int], object]) -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise StoppedError, so that the work unwinds and ends what is under way.

    Whatever the work raises once it was asked to stop counts as that: libraries in C turn the exception that
    passes them into errors of their own. Where unwinding takes more than 5 s, say in a request that hangs, or
    at a second signal, the process ends on the spot: at_the_end is called with the exit status first. Outside
    the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end = _Ending(at_the_end, sys.unraisablehook)
    # A shell lets its background jobs ignore SIGINT, and that is to stay so.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    sys.unraisablehook = end.on_unraisable
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end.on_signal)
    try:
        yield
    except BaseException as error:
        if end.stop is None or error is end.stop:
            raise
        raise end.stop from error
    finally:
        end.cancel()
        sys.unraisablehook = end.report
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ending:
    def __init__(
        self,
        at_the_end: Callable[[int], object],
        report: Callable[[sys.UnraisableHookArgs], object],
    ) -> None:
        self.report = report
        self.stop: StoppedError | None = None
        self._at_the_end = at_the_end
        self._timer: threading.Timer | None = None
        self._again: threading.Timer | None = None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop is None:
            self.stop = StoppedError(number)
            self._timer = _timer(GRACE_SECONDS, self._end_now, self.stop.status)
        elif self._again is None:
            self._end_now(StoppedError(number).status)
        self._again = None
        raise self.stop

    def on_unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Send the signal again whose StoppedError a destructor or weakref callback could not pass on."""
        if self.stop is None or lost.exc_value is not self.stop:
            self.report(lost)
            return
        number = self.stop.status - 128
        self._again = _timer(_AGAIN_SECONDS, signal.pthread_kill, threading.main_thread().ident, number)

    def cancel(self) -> None:
        for timer in (self._timer, self._again):
            if timer is not None:
                timer.cancel()

    def _end_now(self, status: int) -> NoReturn:
        try:
            self._at_the_end(status)
        finally:
            os._exit(status)


def _timer(seconds: float, act: Callable[..., object], *values: object) -> threading.Timer:
    timer = threading.Timer(seconds, act, values)
    timer.daemon = True
    timer.start()
    return timer
