"""For how long one may write: the clock of who holds a claim, and the lease of who writes on its behalf."""

from __future__ import annotations

import time
from dataclasses import dataclass

from segpipe.errors import RunError


@dataclass(frozen=True)
class Moment:
    """A point in time by two clocks: one may be set, the other stands still while the machine sleeps."""

    wall: float
    steady: float

    @classmethod
    def now(cls) -> Moment:
        """This very moment."""
        return cls(time.time(), time.monotonic())

    def age(self) -> float:
        """Seconds since then, by the clock that counts more."""
        now = Moment.now()
        return max(now.wall - self.wall, now.steady - self.steady)


class Lease:
    """A worker's right to write, for so many seconds after a moment that it read off its own clock.

    Who grants it knows when that reading reached him, so his own clock tells by when it has surely run out,
    however late the grant arrives and however long the worker stood still.
    """

    def __init__(self) -> None:
        self._granted = (Moment.now(), 0.0)
        self._is_over = False

    def grant(self, since: Moment, seconds: float) -> None:
        """The right lasts until so many seconds after `since`; nothing changes once it was ended."""
        self._granted = (since, seconds)

    def end(self) -> None:
        """Take the right away for good."""
        self._is_over = True

    def require(self) -> None:
        """Raise RunError unless the worker may write."""
        since, seconds = self._granted
        if self._is_over or since.age() >= seconds:
            why = "it was told to stop" if self._is_over else "its lease was not renewed in time"
            raise RunError(f"the worker writes nothing more: {why}")
