"""How long one object may take: a server that trickles, never silent, would hold a run for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fsspec.asyn import sync

from segpipe.errors import StorageError
from segpipe.redaction import redact

T = TypeVar("T")
SLOWEST_BYTES_PER_SECOND = 100_000  # what a large object is granted beyond `seconds`


@dataclass(frozen=True)
class Deadline:
    """`seconds` for an object of any size, retries included, and the time its bytes need on a slow line."""

    uri: str
    seconds: float
    started: float = field(default_factory=time.monotonic)

    def left(self, n_bytes: int = 0) -> float:
        """Seconds until an object of which n_bytes are known to move has taken too long; 0 at the least."""
        allowed = self.seconds + n_bytes / SLOWEST_BYTES_PER_SECOND
        return max(0.0, self.started + allowed - time.monotonic())

    def require_left(self, n_bytes: int = 0) -> None:
        """Raises StorageError once too long was taken."""
        if not self.left(n_bytes):
            raise self.missed()

    def missed(self) -> StorageError:
        """What is said of it."""
        return StorageError(
            redact(
                f"{self.uri}: not done after {self.seconds:g} s, the server is too slow; try again, or raise "
                "SEGPIPE_STORAGE_OBJECT_SECONDS"
            )
        )


Prolong = Callable[[int], None]


def within(deadline: Deadline, loop: Any, work: Callable[[Prolong], Awaitable[T]], n_bytes: int = 0) -> T:
    """Run a coroutine on fsspec's loop until the deadline, which work moves by saying how many bytes came.

    n_bytes is what is known beforehand to move. Raises StorageError when it is missed; work is cancelled.
    """

    async def limited() -> T:
        clock = asyncio.get_running_loop().time
        limit = asyncio.timeout(deadline.left(n_bytes))

        def prolong(received: int) -> None:
            limit.reschedule(clock() + deadline.left(max(received, n_bytes)))

        try:
            async with limit:
                return await work(prolong)
        except TimeoutError:
            if limit.expired():
                raise deadline.missed() from None
            raise

    answer: T = sync(loop, limited)
    return answer


async def collected(
    chunks: Callable[[int], Coroutine[Any, Any, bytes]], max_bytes: int | None, prolong: Prolong
) -> bytes:
    """All that chunks(at most so many bytes) gives until it gives none, but hardly more than max_bytes."""
    data = bytearray()
    while chunk := await chunks(2**20):
        data += chunk
        prolong(len(data))
        if max_bytes is not None and len(data) > max_bytes:
            break
    return bytes(data)
