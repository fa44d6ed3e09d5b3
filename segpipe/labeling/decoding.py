"""From an image's bytes to what the model takes: decoded and resized, or failed with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from segpipe.errors import ImageError
from segpipe.images import DecodedImage, decode_opened, open_image
from segpipe.labeling.items import FailedImage, FetchedImage, ImageLabeler, ReadImage
from segpipe.labeling.legs import Legs
from segpipe.labeling.limits import Budget, Stopwatch, each_within


@dataclass(frozen=True)
class DecodingLimits:
    """max_pixels and seconds are an image's; budget is of the pixels of all images, and masks, in work."""

    max_pixels: int
    seconds: float
    budget: Budget


def decode_batch(
    batch: Sequence[FetchedImage | FailedImage],
    labeler: ImageLabeler,
    limits: DecodingLimits,
    require_wanted: Callable[[], None],
) -> list[ReadImage | FailedImage]:
    """Decode and prepare what was fetched; what failed before keeps its place.

    Raises what require_wanted, asked before each image, raises.
    """
    fetched = [item for item in batch if isinstance(item, FetchedImage)]

    def decode(item: FetchedImage, stopwatch: Stopwatch) -> ReadImage | FailedImage:
        require_wanted()
        return _decode(item, stopwatch, labeler, limits)

    decoded = iter(each_within(limits.seconds, decode, fetched, partial(_too_late, limits=limits)))
    return [item if isinstance(item, FailedImage) else next(decoded) for item in batch]


def _decode(
    item: FetchedImage, stopwatch: Stopwatch, labeler: ImageLabeler, limits: DecodingLimits
) -> ReadImage | FailedImage:
    started = perf_counter()
    try:
        decoded = _decode_bounded(item.data, stopwatch, labeler.smallest_decode, limits)
    except ImageError as error:
        return _failed(item, error, perf_counter() - started)
    pixels = labeler.prepare(decoded.pixels)
    legs = item.legs + Legs(decode=perf_counter() - started)
    return ReadImage(item.seen, pixels, decoded.height, decoded.width, legs)


def _decode_bounded(
    data: bytes, stopwatch: Stopwatch, smallest: tuple[int, int], limits: DecodingLimits
) -> DecodedImage:
    """Raises ImageError. One that was given up holds its pixels' memory, and so the budget, until it ends."""
    with stopwatch.running():  # a header can be made of millions of segments
        image = open_image(data, limits.max_pixels)
    with limits.budget.held(image.width * image.height), stopwatch.running():
        return decode_opened(image, smallest)


def _too_late(item: FetchedImage, limits: DecodingLimits) -> FailedImage:
    late = f"not decoded after {limits.seconds:g} s; save it anew or raise the limit"
    return _failed(item, ImageError("unreadable", late), limits.seconds)


def _failed(item: FetchedImage, error: ImageError, seconds: float) -> FailedImage:
    return FailedImage(item.seen, None, None, error.reason, error, item.legs + Legs(decode=seconds))
