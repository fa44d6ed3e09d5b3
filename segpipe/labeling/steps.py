"""The steps of an image's way: fetch, decode, judge, finish, encode, store; each works or raises.

What is raised becomes a failed row in batch.py, which also takes the time.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from segpipe import storage
from segpipe.concurrency import Budget, Stopwatch, each_within
from segpipe.errors import DeviceMemoryError, FailureReason, ImageError, SegpipeError, TooLargeError
from segpipe.images import decode_opened, encode_confidence_map, encode_mask, open_image
from segpipe.labeling.items import (
    DecodedPixels,
    EncodedImage,
    File,
    ImageLabeler,
    PlannedImage,
    SeenImage,
    Target,
    one_line,
)
from segpipe.manifests.schema import Row
from segpipe.redaction import redact

if TYPE_CHECKING:
    from segpipe.models.labeler import Labeled

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class DecodingLimits:
    """max_pixels and seconds are an image's; budget is of the pixels of all images, and masks, in work;
    at_own_size of those that are kept at their own size until they are labelled."""

    max_pixels: int
    seconds: float
    budget: Budget
    at_own_size: Budget


class BatchLimit:
    """How many images the device takes at once; learnt from what it refuses, for the rest of the run."""

    def __init__(self, images: int) -> None:
        self.images = images

    def lower_below(self, refused: int) -> None:
        """At most half of what was refused, from now on."""
        self.images = max(1, min(self.images, refused // 2))
        logger.warning(
            "the device has no memory for %d images at once: going on with batches of %d",
            refused,
            self.images,
        )


class NearlyBlack:
    """How many images use so little of their 16 bits that they come out nearly black; safe with threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count, self._first = 0, ""

    def add(self, image: PlannedImage) -> None:
        """One more."""
        with self._lock:
            self._count += 1
            self._first = self._first or image.image_uri

    def say(self) -> None:
        """Warn of them, if there were any."""
        if self._count:
            logger.warning(
                "%d images are nearly black, %s for example: they have more than 8 bits a channel and use "
                "less than an eighth of the range; train with the range of their values (image.range of "
                "dataset.json), or save them scaled to it, and label again",
                self._count,
                redact(self._first),
            )


def fetch(image: PlannedImage, max_bytes: int) -> storage.Blob:
    """An image's object. Raises ImageError when it has more than max_bytes, listed or not, StorageError."""
    if image.image_bytes > max_bytes:
        raise _too_large(image.image_bytes, max_bytes)
    try:
        return storage.read(image.image_uri, max_bytes)
    except TooLargeError:
        raise _too_large(max_bytes + 1, max_bytes) from None


def _too_large(at_least: int, max_bytes: int) -> ImageError:
    return ImageError("too_large", f"{at_least} bytes are over {max_bytes}; shrink it or raise the limit")


@dataclass(frozen=True)
class Together(Generic[Item]):
    """Items that are computed together, and their pixels."""

    items: list[Item]
    pixels: int


def together(items: Iterable[tuple[Item, int]], most: int) -> Iterator[Together[Item]]:
    """The items, each with its pixels, in lists of at most so many, one item at least."""
    part = Together[Item]([], 0)
    for item, pixels in items:
        if part.items and part.pixels + pixels > most:
            yield part
            part = Together([], 0)
        part = Together([*part.items, item], part.pixels + pixels)
    yield part


def pixels_told(data: Sequence[bytes], limits: DecodingLimits) -> list[int]:
    """Pixels of each image by its header; 0 of what cannot be opened, which decoding will say."""

    def told(one: bytes, stopwatch: Stopwatch) -> int:
        try:
            with stopwatch.running():
                image = open_image(one, limits.max_pixels)
        except ImageError:
            return 0
        return image.width * image.height

    return each_within(limits.seconds, told, data, lambda _: 0)


def decode_each(
    data: Sequence[bytes], labeler: ImageLabeler, limits: DecodingLimits, require_wanted: Callable[[], None]
) -> list[DecodedPixels | ImageError]:
    """Images' bytes as the labeler takes them, or what each failed with.

    Raises what require_wanted, asked before each image, raises.
    """

    def decode(one: bytes, stopwatch: Stopwatch) -> DecodedPixels | ImageError:
        require_wanted()
        try:
            return _decode(one, stopwatch, labeler, limits)
        except ImageError as error:
            return error

    late = f"not decoded after {limits.seconds:g} s; save it anew or raise the limit"
    return each_within(limits.seconds, decode, data, lambda _: ImageError("unreadable", late))


def _decode(
    data: bytes, stopwatch: Stopwatch, labeler: ImageLabeler, limits: DecodingLimits
) -> DecodedPixels:
    """Raises ImageError. One that was given up holds its pixels' memory, and so the budget, until it ends."""
    with stopwatch.running():  # a header can be made of millions of segments
        image = open_image(data, limits.max_pixels)
    with limits.budget.held(image.width * image.height), stopwatch.running():
        decoded = decode_opened(image, labeler.smallest_decode, labeler.image_range)
    pixels = labeler.prepare(decoded.pixels)
    return DecodedPixels(pixels, decoded.height, decoded.width, decoded.nearly_black)


def judge(images: Sequence[DecodedPixels], labeler: ImageLabeler, limit: BatchLimit) -> list[Any | Exception]:
    """What the labeler says of each image, or what it failed with; what is too much for the device is halved.

    Raises what segpipe itself raises.
    """
    return _in_parts(images, lambda part: labeler.judge([image.pixels for image in part]), limit)


def judge_at_size(
    images: Sequence[DecodedPixels], labeler: ImageLabeler, limit: BatchLimit
) -> list[Any | Exception]:
    """As `judge`, with the masks made on the device."""

    def judge_part(part: list[DecodedPixels]) -> Sequence[Any]:
        sizes = [(image.height, image.width) for image in part]
        return labeler.judge_at_size([image.pixels for image in part], sizes)

    return _in_parts(images, judge_part, limit)


JudgePart = Callable[[list[DecodedPixels]], Sequence[Any]]


def _in_parts(
    images: Sequence[DecodedPixels], judge_part: JudgePart, limit: BatchLimit
) -> list[Any | Exception]:
    return [answer for part in in_batches(images, limit) for answer in _judge(part, judge_part, limit)]


def _judge(images: list[DecodedPixels], judge_part: JudgePart, limit: BatchLimit) -> list[Any | Exception]:
    try:
        return list(judge_part(images))
    except DeviceMemoryError as error:
        if len(images) == 1:
            return [error]
        limit.lower_below(len(images))
        return _in_parts(images, judge_part, limit)
    except SegpipeError:
        raise
    except Exception as error:
        if len(images) == 1:
            return [error]
        logger.info("a batch of %d images failed (%s), trying them one by one", len(images), one_line(error))
        return [answer for image in images for answer in _judge([image], judge_part, limit)]


def in_batches(items: Iterable[Item], limit: BatchLimit) -> Iterator[list[Item]]:
    """The items in lists as long as the limit is at that time."""
    items = iter(items)
    while batch := list(islice(items, limit.images)):
        yield batch


def finish(judged: Any, height: int, width: int, labeler: ImageLabeler) -> Labeled:
    """The mask at the image's own size. Raises ValueError for one of another size."""
    labeled = labeler.finish(judged, height, width)
    if labeled.mask.shape != (height, width):
        raise ValueError(
            f"the model gave a mask of size {labeled.mask.shape} for an image of {height, width}"
        )
    return labeled


def encode(image: SeenImage, labeled: Labeled, target: Target) -> EncodedImage:
    """The files and the row of a labelled image."""
    mask = File(
        storage.join(target.masks_root, image.planned.mask_key), encode_mask(labeled.mask, target.palette)
    )
    confidence_map = _encode_map(image, labeled, target)
    files = (mask,) if confidence_map is None else (mask, confidence_map)
    return EncodedImage(files, labelled_row(image, labeled, target, mask, confidence_map))


def _encode_map(image: SeenImage, labeled: Labeled, target: Target) -> File | None:
    if target.confidence_maps_root is None:
        return None
    uri = storage.join(target.confidence_maps_root, image.planned.mask_key)
    assert image.height is not None  # it was decoded
    assert image.width is not None
    return File(uri, encode_confidence_map(labeled.confidence_map, image.height, image.width))


def store(encoded: EncodedImage) -> Row:
    """Put the files, which makes the row true. Raises StorageError."""
    for file in encoded.files:
        storage.put(file.uri, file.data)
    return encoded.row


def labelled_row(
    image: SeenImage, labeled: Labeled, target: Target, mask: File, confidence_map: File | None
) -> Row:
    """The row of an image once its mask is stored; undecided: review, no_policy."""
    return Row(
        **_common(image, target),
        mask_uri=mask.uri,
        mask_sha256=hashlib.sha256(mask.data).hexdigest(),
        decision="review",
        reason="no_policy",
        confidence=_finite(labeled.confidence),
        discriminator_score=_finite(labeled.discriminator_score),
        class_fractions=[float(value) for value in labeled.class_fractions],
        class_confidences=[_finite(value) for value in labeled.class_confidences],
        inclusion_probability=1.0,
        error=None,
        confidence_map_uri=confidence_map.uri if confidence_map else None,
    )


def failed_row(image: SeenImage, reason: FailureReason, error: Exception, target: Target) -> Row:
    """The row of an image that has no mask."""
    return Row(
        **_common(image, target),
        mask_uri=None,
        mask_sha256=None,
        decision="failed",
        reason=reason,
        confidence=None,
        discriminator_score=None,
        class_fractions=None,
        class_confidences=None,
        inclusion_probability=0.0,
        error=redact(one_line(error)),
    )


def _common(image: SeenImage, target: Target) -> dict[str, Any]:
    return {
        "image_uri": image.planned.image_uri,
        "image_etag": image.etag,
        "image_bytes": image.bytes,
        "image_width": image.width,
        "image_height": image.height,
        "audit": False,
        "model_id": target.model_id,
        "policy_id": None,
        "run_id": target.run_id,
        "shard": image.planned.shard,
        "labeled_at": max(datetime.now(UTC), target.stamps_from),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
