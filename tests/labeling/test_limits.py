"""No image takes all the time or all the memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from segpipe.labeling import decoding
from segpipe.labeling.decoding import DecodingLimits, decode_batch
from segpipe.labeling.items import FailedImage, FetchedImage, PlannedImage, SeenImage
from segpipe.labeling.legs import Legs
from segpipe.labeling.limits import Budget, Stopwatch, each_within


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


@pytest.fixture
def fetched() -> FetchedImage:
    """The bytes of a PNG of 5 x 2."""
    picture = BytesIO()
    Image.new("RGB", (5, 2)).save(picture, "PNG")
    planned = PlannedImage(0, "/in/a.png", "e", 1, "a.png")
    return FetchedImage(SeenImage(planned, "e", 1), picture.getvalue(), Legs())


def test_reading_the_header_is_limited_too(
    monkeypatch: pytest.MonkeyPatch, stuck: threading.Event, fetched: FetchedImage, make_labeler
) -> None:
    monkeypatch.setattr(decoding, "open_image", lambda data, max_pixels: stuck.wait(60))
    limits = DecodingLimits(max_pixels=10, seconds=0.05, budget=Budget(10))
    (failed,) = decode_batch([fetched], make_labeler(), limits, lambda: None)
    assert isinstance(failed, FailedImage)
    assert failed.reason == "unreadable"


def test_an_image_that_is_given_up_holds_its_pixels_until_its_decoding_ends(
    monkeypatch: pytest.MonkeyPatch, stuck: threading.Event, fetched: FetchedImage, make_labeler
) -> None:
    monkeypatch.setattr(PngImageFile, "load", lambda self: stuck.wait(60))
    limits = DecodingLimits(max_pixels=10, seconds=0.05, budget=Budget(10))
    (failed,) = decode_batch([fetched], make_labeler(), limits, lambda: None)
    assert isinstance(failed, FailedImage)
    assert (failed.reason, str(failed.error)[:23]) == ("unreadable", "not decoded after 0.05 ")

    def take_all() -> None:
        with limits.budget.held(10):
            pass

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take_all)
        assert wait([waiting], timeout=0.2).not_done
        stuck.set()
        waiting.result(60)
