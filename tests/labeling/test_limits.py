"""No image takes all the time or all the memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from segpipe.errors import ImageError
from segpipe.labeling import reading
from segpipe.labeling.limits import PixelBudget, within
from segpipe.labeling.reading import ReadingLimits


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
        taken = budget.take(pixels)
        with lock:
            held[0] += taken
            most[0] = max(most[0], held[0])
        with lock:
            held[0] -= taken
        budget.give_back(taken)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 5, 10, 25, 1, 2] * 40))
    assert 0 < most[0] <= 10
    assert budget.take(25) == 10  # all was given back


def test_an_image_that_is_given_up_holds_its_pixels_until_its_decoding_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, picture = threading.Event(), BytesIO()
    Image.new("RGB", (5, 2)).save(picture, "PNG")
    monkeypatch.setattr(PngImageFile, "load", lambda self: go_on.wait(60))
    limits = ReadingLimits(max_bytes=10_000, max_pixels=10, seconds=0.05, budget=PixelBudget(10))
    with pytest.raises(ImageError, match="not decoded after"):
        reading._decode(picture.getvalue(), (2, 5), limits)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(limits.budget.take, 10)
        assert wait([waiting], timeout=0.2).not_done
        go_on.set()
        assert waiting.result(60) == 10
