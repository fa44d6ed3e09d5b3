"""From a planned image to what the model takes: fetched, decoded and resized, or failed with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter

from PIL.ImageFile import ImageFile

from segpipe import storage
from segpipe.errors import ImageError, StorageError
from segpipe.images import DecodedImage, decode_opened, open_image
from segpipe.labeling.items import FailedImage, ImageLabeler, PlannedImage, ReadImage, SeenImage
from segpipe.labeling.legs import Legs
from segpipe.labeling.limits import PixelBudget, within


@dataclass(frozen=True)
class ReadingLimits:
    """max_bytes, max_pixels and seconds are an image's, budget is that of all images in decoding."""

    max_bytes: int
    max_pixels: int
    seconds: float
    budget: PixelBudget


def read_image(image: PlannedImage, labeler: ImageLabeler, limits: ReadingLimits) -> ReadImage | FailedImage:
    """Fetch, decode and prepare one image."""
    started = perf_counter()
    planned = SeenImage(image, image.image_etag, image.image_bytes)
    if image.image_bytes > limits.max_bytes:
        return FailedImage(planned, None, None, "too_large", _too_many_bytes(image, limits), Legs())
    try:
        blob = storage.read(image.image_uri)
    except StorageError as error:
        return FailedImage(planned, None, None, "storage", error, Legs(read=perf_counter() - started))
    read = perf_counter()
    seen = SeenImage(image, blob.etag, len(blob.data))
    try:
        decoded = _decode(blob.data, labeler.smallest_decode, limits)
    except ImageError as error:
        legs = Legs(read=read - started, decode=perf_counter() - read)
        return FailedImage(seen, None, None, error.reason, error, legs)
    pixels = labeler.prepare(decoded.pixels)
    legs = Legs(read=read - started, decode=perf_counter() - read)
    return ReadImage(seen, pixels, decoded.height, decoded.width, legs)


def _too_many_bytes(image: PlannedImage, limits: ReadingLimits) -> ImageError:
    return ImageError(
        "too_large", f"{image.image_bytes} bytes are over {limits.max_bytes}; shrink it or raise the limit"
    )


def _decode(data: bytes, smallest: tuple[int, int], limits: ReadingLimits) -> DecodedImage:
    """Raises ImageError."""
    image = open_image(data, limits.max_pixels)
    pixels = limits.budget.take(image.width * image.height)
    try:
        return within(limits.seconds, partial(_decode_and_give_back, image, smallest, pixels, limits.budget))
    except TimeoutError as error:
        raise ImageError(
            "unreadable", f"not decoded after {limits.seconds:g} s; save it anew or raise the limit"
        ) from error


def _decode_and_give_back(
    image: ImageFile, smallest: tuple[int, int], pixels: int, budget: PixelBudget
) -> DecodedImage:
    """Where the decoding ends, since one that was given up holds its memory until then."""
    try:
        return decode_opened(image, smallest)
    finally:
        budget.give_back(pixels)
