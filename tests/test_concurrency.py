"""Work is bounded in time and in what it holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from segpipe.concurrency import Budget, Stopwatch, each_within, ordered_map


def say_late(item: int) -> str:
    return f"{item} is late"


def test_work_in_time_gives_its_results_in_order_or_its_own_error() -> None:
    def work(item: int, stopwatch: Stopwatch) -> str:
        with stopwatch.running():
            return str(6 // item)

    assert each_within(60, work, [3, 2, 1], say_late) == ["2", "3", "6"]
    assert each_within(60, work, [], say_late) == []
    with pytest.raises(ZeroDivisionError):
        each_within(60, work, [3, 0, 1], say_late)


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What hanging work waits for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_work_that_takes_too_long_is_given_up_and_the_rest_is_done(stuck: threading.Event) -> None:
    begun = []

    def work(item: int, stopwatch: Stopwatch) -> str:
        begun.append(item)
        with stopwatch.running():
            if item % 2:
                stuck.wait(60)
            return "done"

    results = each_within(0.5, work, [0, 1, 2, 3, 4], say_late)
    assert results == ["done", "1 is late", "done", "3 is late", "done"]
    assert begun == [0, 1, 2, 3, 4]
    # What was given up ends without going on to what others have done meanwhile.
    stuck.set()
    for thread in threading.enumerate():
        if thread.daemon and "_run" in thread.name:
            thread.join(60)
    assert begun == [0, 1, 2, 3, 4]


def test_only_the_time_on_the_stopwatch_counts(stuck: threading.Event) -> None:
    def work(item: int, stopwatch: Stopwatch) -> str:
        with stopwatch.running():
            pass
        assert not stuck.wait(0.3)
        with stopwatch.running():
            return "done"

    assert each_within(0.1, work, [1], say_late) == ["done"]


def test_together_the_images_never_hold_more_than_the_budget() -> None:
    budget, lock, held, most = Budget(10), threading.Lock(), [0], [0]

    def hold(pixels: int) -> None:
        with budget.held(pixels):
            with lock:
                held[0] += min(pixels, 10)
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= min(pixels, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 5, 10, 25, 1, 2] * 40))
    assert 0 < most[0] <= 10


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
