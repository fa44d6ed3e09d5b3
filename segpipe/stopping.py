"""Stop in order when a signal asks for it, and in any case within seconds."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 5.0
_LAST_WORDS_SECONDS = 2.0
_AGAIN_SECONDS = 0.05
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOST, _OVER = b"\x00", b"\xff"  # neither is a signal's number
_TELLING = (b"", _LOST, _OVER, *(bytes([number]) for number in _SIGNALS))


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
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    sys.unraisablehook = end.on_unraisable
    for number in heard:
        signal.signal(number, end.on_signal)
    told_before = signal.set_wakeup_fd(end.told.fileno(), warn_on_full_buffer=False)
    try:
        yield
    except BaseException as error:
        if end.stop is None or error is end.stop:
            raise
        raise end.stop from error
    finally:
        signal.set_wakeup_fd(told_before)
        sys.unraisablehook = end.report
        for number in heard:
            signal.signal(number, before[number])
        end.over()


class _Ending:
    """The handler in the main thread raises; a thread that hears of signals by itself bounds the unwinding.

    That thread is told through a socket by Python's own handler in C: the main thread may be in a call into C
    that never comes back, or hold a lock that starting a timer would wait for.
    """

    def __init__(
        self,
        at_the_end: Callable[[int], object],
        report: Callable[[sys.UnraisableHookArgs], object],
    ) -> None:
        self.report = report
        self.stop: StoppedError | None = None
        self._at_the_end = at_the_end
        self.told, self._heard = socket.socketpair()
        self.told.setblocking(False)
        self._watching = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watching.start()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop is None:
            self.stop = StoppedError(number)
        raise self.stop

    def on_unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Have the signal sent again whose StoppedError a destructor or weak reference could not pass on."""
        if self.stop is None or lost.exc_value is not self.stop:
            self.report(lost)
        else:
            self.told.send(_LOST)

    def over(self) -> None:
        self.told.send(_OVER)
        self._watching.join()
        self.told.close()
        self._heard.close()

    def _watch(self) -> None:
        first = self._hear(None)
        if first == _OVER:
            return
        until, resent = time.monotonic() + GRACE_SECONDS, 0
        while (byte := self._hear(until)) == _LOST or (byte == first and resent):
            if byte == _LOST:
                time.sleep(_AGAIN_SECONDS)
                signal.pthread_kill(_main_thread(), first[0])
            resent += 1 if byte == _LOST else -1
        if byte != _OVER:
            self._end_now(128 + (byte or first)[0])

    def _hear(self, until: float | None) -> bytes:
        """What is told of a stop until then; empty: nothing."""
        while True:
            seconds = None if until is None else max(0.0, until - time.monotonic())
            readable, _, _ = select.select([self._heard], [], [], seconds)
            byte = self._heard.recv(1) if readable else b""
            if byte in _TELLING:  # Python tells of every signal that it handles
                return byte

    def _end_now(self, status: int) -> NoReturn:
        """The last words may wait for a lock that the main thread holds."""
        words = threading.Thread(target=self._at_the_end, args=(status,), daemon=True)
        words.start()
        words.join(_LAST_WORDS_SECONDS)
        os._exit(status)


def _main_thread() -> int:
    number = threading.main_thread().ident
    assert number is not None
    return number
