"""Work on many items in threads, in order and a bounded number of items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Each item's result in the order of the items, of which at most `ahead` are in work or waiting."""
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(copy_context().run, work, item))  # what is logged names its run
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
