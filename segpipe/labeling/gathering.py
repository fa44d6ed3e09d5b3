"""One device fed by many threads: the images that they bring while it is busy go through it together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from threading import Condition
from time import perf_counter
from typing import Any

from segpipe.labeling.items import DecodedPixels
from segpipe.labeling.steps import BatchLimit

# Pixels of masks that are made on a device, and fetched, in one go, unless a single image has more.
MASK_PIXELS_AT_ONCE = 64_000_000
Judge = Callable[[list[DecodedPixels]], Sequence[Any | Exception]]


@dataclass(frozen=True)
class Gathered:
    """What the device said of images, and the seconds it had for each of them."""

    answers: Sequence[Any | Exception]
    seconds_each: float


@dataclass(frozen=True)
class _Brought:
    images: Sequence[DecodedPixels]
    pixels: int
    answered: Future[Gathered] = field(default_factory=Future)


class Gathering:
    """Images wait here for a device; safe with threads.

    Whoever serves takes all that wait, as far as they fit in a batch: so a batch grows as long as the device
    is what all wait for, and nobody waits for a batch to be full.
    """

    def __init__(self, judge: Judge, limit: BatchLimit) -> None:
        self._judge, self._limit = judge, limit
        self._waiting: deque[_Brought] = deque()
        self._changed = Condition()
        self._open = True
        self._failure: BaseException | None = None

    def judged(self, images: Sequence[DecodedPixels]) -> Gathered:
        """What the device says of the images, which is waited for. Raises what judging a batch raises."""
        brought = _Brought(images, sum(image.height * image.width for image in images))
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._waiting.append(brought)
            self._changed.notify()
        return brought.answered.result()

    def serve(self) -> None:
        """Judge what is brought, until it is closed and nothing waits any more."""
        while batch := self._next_batch():
            started = perf_counter()
            try:
                answers = self._judge([image for brought in batch for image in brought.images])
            except BaseException as error:  # of whatever kind, it belongs to those who wait
                for brought in batch:
                    brought.answered.set_exception(error)
            else:
                _hand_out(answers, batch, perf_counter() - started)

    def fail(self, error: BaseException) -> None:
        """Nobody serves any more: whoever waits, or comes, is told why."""
        with self._changed:
            self._failure = error
            while self._waiting:
                self._waiting.popleft().answered.set_exception(error)

    def close(self) -> None:
        """Let those who serve end."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _next_batch(self) -> list[_Brought]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            batch: list[_Brought] = []
            while self._waiting and self._fits([*batch, self._waiting[0]]):
                batch.append(self._waiting.popleft())
            return batch

    def _fits(self, batch: Sequence[_Brought]) -> bool:
        images, pixels = sum(len(one.images) for one in batch), sum(one.pixels for one in batch)
        return len(batch) == 1 or (images <= self._limit.images and pixels <= MASK_PIXELS_AT_ONCE)


def _hand_out(answers: Sequence[Any | Exception], batch: Sequence[_Brought], seconds: float) -> None:
    first = 0
    for brought in batch:
        own = answers[first : first + len(brought.images)]
        brought.answered.set_result(Gathered(own, seconds / len(answers)))
        first += len(brought.images)


@contextmanager
def served(gathering: Gathering, threads: Executor, number: int) -> Iterator[Gathering]:
    """Let so many threads serve it in the block; what was brought by its end is answered."""
    for _ in range(number):
        # What is logged there names this run too.
        threads.submit(copy_context().run, gathering.serve).add_done_callback(partial(_tell, gathering))
    try:
        yield gathering
    finally:
        gathering.close()


def _tell(gathering: Gathering, serving: Future[None]) -> None:
    """A thread that cannot even begin to serve must leave nobody waiting for it."""
    error = serving.exception()
    if error is not None:
        gathering.fail(error)
