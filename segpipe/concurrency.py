"""What one image may cost: seconds, and a share of the memory that all images in work have together; and how
many cores there are for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import copy_context
from time import monotonic
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def own_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Budget:
    """So many bytes or pixels may be in work at once; who asks for more than are left waits for others."""

    def __init__(self, amount: int) -> None:
        self._amount = amount
        self._free = amount
        self._changed = threading.Condition()

    @contextmanager
    def held(self, amount: int) -> Iterator[None]:
        """Wait for so much and hold it; who wants more than there is at all gets all."""
        amount = min(amount, self._amount)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


class Stopwatch:
    """For how long the present part of some work has been going on."""

    def __init__(self) -> None:
        self._began: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts from here to the end of the block."""
        self._began = monotonic()
        try:
            yield
        finally:
            self._began = None

    def elapsed(self) -> float:
        """Seconds; 0 while it is not running."""
        began = self._began
        return 0.0 if began is None else monotonic() - began


def each_within(
    seconds: float,
    work: Callable[[Item, Stopwatch], Result],
    items: Sequence[Item],
    too_late: Callable[[Item], Result],
) -> list[Result]:
    """The result of work for each item, one after the other, or too_late's where it ran for longer.

    Work that takes longer is left to its own thread: Python cannot stop it, but it no longer holds up others.
    """
    results: list[Result] = []
    while len(results) < len(items):
        results += _Attempt(work, items[len(results) :]).results(seconds)
        if len(results) < len(items):
            results.append(too_late(items[len(results)]))
    return results


class _Attempt(Generic[Item, Result]):
    """Items in work in one thread, as far as it comes. A thread for each item would cost more than a mask."""

    def __init__(self, work: Callable[[Item, Stopwatch], Result], items: Sequence[Item]) -> None:
        self._stopwatch = Stopwatch()
        self._items = deque(items)
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._given_up = False
        self._changing = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Item, Stopwatch], Result]) -> None:
        try:
            while self._items:
                result = work(self._items.popleft(), self._stopwatch)
                with self._changing:
                    if self._given_up:
                        return
                    self._results.append(result)
        except BaseException as error:  # of whatever kind, it belongs to who waits
            self._error = error
        finally:
            self._ended.set()

    def results(self, seconds: float) -> list[Result]:
        """All of them, or those before the first that takes longer."""
        while not self._ended.wait(seconds - self._stopwatch.elapsed()):
            with self._changing:
                self._given_up = self._stopwatch.elapsed() >= seconds
                if self._given_up:
                    self._items.clear()  # others do them, and the thread may hang for long
                    return self._results
        if self._error is not None:
            raise self._error
        return self._results


def ordered_map(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item | None], ahead: int
) -> Iterator[Result]:
    """Each item's result in the order of the items, of which at most `ahead` are in work or waiting.

    None among the items says that there is none for now: a result is given before the next is asked for.
    """
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            if item is not None:
                running.append(pool.submit(copy_context().run, work, item))  # what is logged names its run
            if len(running) >= ahead or (running and item is None):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
