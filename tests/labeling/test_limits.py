"""No image takes all the time or all the memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from segpipe.labeling.limits import PixelBudget, within


def test_work_in_time_gives_its_result_or_its_own_error() -> None:
    assert within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)


def test_work_that_takes_too_long_is_given_up() -> None:
    go_on = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, lambda: go_on.wait(60))
    go_on.set()


def test_together_the_images_never_hold_more_than_the_budget() -> None:
    budget, lock, held, most = PixelBudget(10), threading.Lock(), [0], [0]

    def hold(pixels: int) -> None:
        with budget.hold(pixels):
            with lock:
                held[0] += min(pixels, 10)
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= min(pixels, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 5, 10, 25, 1, 2] * 40))
    assert 0 < most[0] <= 10
    with budget.hold(10):
        pass  # all was given back


def test_a_failure_gives_its_pixels_back() -> None:
    budget = PixelBudget(10)
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"), budget.hold(10):
            raise ValueError("damaged")
