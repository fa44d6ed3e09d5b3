"""What one image may cost: seconds, and a share of the memory that all images in work have together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """The result of the work, or TimeoutError after so many seconds.

    Work that takes longer is left to its own thread: Python cannot stop it, but it no longer holds up others.
    """
    future: Future[Result] = Future()
    threading.Thread(target=_settle, args=(future, work), daemon=True).start()
    return future.result(timeout=seconds)


def _settle(future: Future[Result], work: Callable[[], Result]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # of whatever kind, it belongs to who waits
        future.set_exception(error)


class PixelBudget:
    """So many pixels may be in work at once; who asks for more than are left waits for others to finish."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._free = pixels
        self._changed = threading.Condition()

    def take(self, pixels: int) -> int:
        """Wait for so many pixels and take them; who wants more than there are at all gets all. How many."""
        pixels = min(pixels, self._pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        return pixels

    def give_back(self, pixels: int) -> None:
        """What was taken is free for others."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()
