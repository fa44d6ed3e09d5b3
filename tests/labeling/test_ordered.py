"""Order and bounds of work in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from segpipe.labeling.ordered import ordered_map


def test_results_keep_the_order_of_the_items_whatever_is_done_first() -> None:
    last_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last_is_done.wait(20)
        if item == 3:
            last_is_done.set()
        return item * item

    with ThreadPoolExecutor(2) as pool:
        assert list(ordered_map(pool, work, range(6), ahead=4)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_so_many_items_are_taken_before_their_turn(ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    with ThreadPoolExecutor(2) as pool:
        for finished, _ in enumerate(ordered_map(pool, lambda item: item, items(), ahead)):
            assert taken - finished <= ahead


def test_an_error_comes_in_its_turn_and_ends_the_work() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = ordered_map(pool, lambda item: 1 // (item - 1), [3, 2, 1, 0], ahead=4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
