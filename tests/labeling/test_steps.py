"""No image takes all the time or all the memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from segpipe.concurrency import Budget
from segpipe.errors import ImageError
from segpipe.labeling import steps
from segpipe.labeling.steps import DecodingLimits


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What hanging work waits for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def fetched() -> bytes:
    """The bytes of a PNG of 5 x 2."""
    picture = BytesIO()
    Image.new("RGB", (5, 2)).save(picture, "PNG")
    return picture.getvalue()


def test_reading_the_header_is_limited_too(
    monkeypatch: pytest.MonkeyPatch, stuck: threading.Event, fetched: bytes, make_labeler
) -> None:
    monkeypatch.setattr(steps, "open_image", lambda data, max_pixels: stuck.wait(60))
    limits = DecodingLimits(max_pixels=10, seconds=0.05, budget=Budget(10), at_own_size=Budget(10))
    (failed,) = steps.decode_each([fetched], make_labeler(), limits, lambda: None)
    assert isinstance(failed, ImageError)
    assert failed.reason == "unreadable"


def test_an_image_that_is_given_up_holds_its_pixels_until_its_decoding_ends(
    monkeypatch: pytest.MonkeyPatch, stuck: threading.Event, fetched: bytes, make_labeler
) -> None:
    monkeypatch.setattr(PngImageFile, "load", lambda self: stuck.wait(60))
    # Long enough for the header on a busy machine: what hangs is the decoding.
    limits = DecodingLimits(max_pixels=10, seconds=0.5, budget=Budget(10), at_own_size=Budget(10))
    (failed,) = steps.decode_each([fetched], make_labeler(), limits, lambda: None)
    assert isinstance(failed, ImageError)
    assert (failed.reason, str(failed)[:22]) == ("unreadable", "not decoded after 0.5 ")

    def take_all() -> None:
        with limits.budget.held(10):
            pass

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take_all)
        assert wait([waiting], timeout=0.2).not_done
        stuck.set()
        waiting.result(60)
