"""Planned images in, finished rows out: fetch and decode, label, encode and write, all overlapping.

Fetching and writing run in threads, inference in the caller's thread. Every stage keeps the images' order and
works a bounded number of images ahead, so memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from segpipe import storage
from segpipe.errors import ImageError, SegpipeError, StorageError
from segpipe.images import decode_image, encode_confidence_map, encode_mask
from segpipe.labeling.giving_up import stop_when_too_many_fail
from segpipe.labeling.routing import route
from segpipe.manifests.schema import FailureReason, Row

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.config import LabelSettings
    from segpipe.models.labeler import Labeled

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageLabeler(Protocol):
    """A loaded model: what labelling needs of segpipe.models.labeler.Labeler."""

    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def model_id(self) -> str: ...
    @property
    def policy(self) -> Policy | None: ...
    def label(self, images: list[np.ndarray]) -> list[Labeled]: ...


@dataclass(frozen=True)
class PlannedImage:
    """One row of a plan: etag and bytes as listed; mask_key is relative to the model's mask folder."""

    shard: int
    image_uri: str
    image_etag: str
    image_bytes: int
    mask_key: str


@dataclass(frozen=True)
class Legs:
    """Seconds per leg of the work; legs that run in several threads at once can exceed the wall time.

    wait is what the labelling thread spent idle, waiting for decoded images or for masks to be written.
    """

    read: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    wait: float = 0.0

    def __add__(self, other: Legs) -> Legs:
        return Legs(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Target:
    """Where masks go and whose name their rows carry; require_claim raises when the run must not write.

    confidence_maps_root: where confidence maps go; None: they are not wanted.
    """

    masks_root: str
    confidence_maps_root: str | None
    run_id: str
    model_id: str
    policy: Policy | None
    palette: np.ndarray
    require_claim: Callable[[], None]


@dataclass(frozen=True)
class _Decoded:
    """pixels is HxWx3 uint8; etag and size (bytes) are those of what was read."""

    image: PlannedImage
    etag: str
    size: int
    pixels: np.ndarray
    legs: Legs


@dataclass(frozen=True)
class _Labelled:
    image: PlannedImage
    etag: str
    size: int
    labeled: Labeled
    legs: Legs


@dataclass(frozen=True)
class _Failed:
    """etag and size (bytes) are those of what was read, or as planned when nothing was."""

    image: PlannedImage
    etag: str
    size: int
    height: int | None
    width: int | None
    reason: FailureReason
    error: Exception
    legs: Legs


@dataclass(frozen=True)
class _File:
    uri: str
    data: bytes


@dataclass(frozen=True)
class Outcome:
    """A finished image: its row, the time it took, and what went wrong with it, if anything did."""

    row: Row
    legs: Legs
    error: Exception | None


def label_images(
    images: Iterable[PlannedImage], labeler: ImageLabeler, target: Target, settings: LabelSettings
) -> Generator[Outcome, None, None]:
    """Label the images in order; each outcome's mask, and its confidence map, is stored before it is yielded.

    An image that cannot be read, decoded, labelled or written becomes a failed row. Raises RunError when too
    many fail, or when the claim is lost.
    """
    ahead = settings.batch_images + max(settings.batch_images, settings.fetch_threads)
    with (
        ThreadPoolExecutor(settings.fetch_threads) as fetchers,
        ThreadPoolExecutor(settings.encode_threads) as writers,
    ):
        fetch = partial(_fetch, max_pixels=settings.max_image_pixels)
        decoded = (_waited(*found) for found in _ordered_map(fetchers, fetch, images, ahead))
        labelled = _label_batches(decoded, labeler, settings.batch_images)
        write = partial(_write, target=target)
        written = (_waited(*found) for found in _ordered_map(writers, write, labelled, ahead))
        yield from stop_when_too_many_fail(written, settings.max_failure_rate)


def _ordered_map(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Result, float]]:
    """Each item's result in order, worked on at most `ahead` items early, and the seconds waited for it."""
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= ahead:
                yield _wait_for(running.popleft())
        while running:
            yield _wait_for(running.popleft())
    finally:
        for future in running:
            future.cancel()


def _wait_for(future: Future[Result]) -> tuple[Result, float]:
    started = perf_counter()
    return future.result(), perf_counter() - started


Timed = TypeVar("Timed", bound="_Decoded | _Failed | Outcome")


def _waited(item: Timed, seconds: float) -> Timed:
    return replace(item, legs=item.legs + Legs(wait=seconds))


def _fetch(image: PlannedImage, max_pixels: int) -> _Decoded | _Failed:
    started = perf_counter()
    try:
        blob = storage.read(image.image_uri)
    except StorageError as error:
        legs = Legs(read=perf_counter() - started)
        return _Failed(image, image.image_etag, image.image_bytes, None, None, "storage", error, legs)
    read = perf_counter()
    try:
        pixels = decode_image(blob.data, max_pixels)
    except ImageError as error:
        legs = Legs(read=read - started, decode=perf_counter() - read)
        return _Failed(image, blob.etag, len(blob.data), None, None, error.reason, error, legs)
    legs = Legs(read=read - started, decode=perf_counter() - read)
    return _Decoded(image, blob.etag, len(blob.data), pixels, legs)


def _label_batches(
    items: Iterable[_Decoded | _Failed], labeler: ImageLabeler, batch_images: int
) -> Iterator[_Labelled | _Failed]:
    items = iter(items)
    while batch := list(islice(items, batch_images)):
        labelled = iter(_label_batch(labeler, [item for item in batch if isinstance(item, _Decoded)]))
        yield from (item if isinstance(item, _Failed) else next(labelled) for item in batch)


def _label_batch(labeler: ImageLabeler, batch: list[_Decoded]) -> list[_Labelled | _Failed]:
    """When the batch fails its images are tried one by one, so that a bad image fails alone."""
    if not batch:
        return []
    started = perf_counter()
    try:
        labeled = _checked_label(labeler, [item.pixels for item in batch])
    except SegpipeError:
        raise
    except Exception as error:
        if len(batch) == 1:
            return [_inference_failure(batch[0], error, perf_counter() - started)]
        logger.info("a batch of %d images failed (%s), trying them one by one", len(batch), _one_line(error))
        return [result for item in batch for result in _label_batch(labeler, [item])]
    share = Legs(infer=(perf_counter() - started) / len(batch))
    return [
        _Labelled(item.image, item.etag, item.size, result, item.legs + share)
        for item, result in zip(batch, labeled, strict=True)
    ]


def _checked_label(labeler: ImageLabeler, images: list[np.ndarray]) -> list[Labeled]:
    labeled = labeler.label(images)
    sizes, wanted = [result.mask.shape for result in labeled], [pixels.shape[:2] for pixels in images]
    if sizes != wanted:
        raise ValueError(f"the model gave masks of sizes {sizes} for images of sizes {wanted}")
    return labeled


def _inference_failure(item: _Decoded, error: Exception, seconds: float) -> _Failed:
    height, width = item.pixels.shape[:2]
    legs = item.legs + Legs(infer=seconds)
    return _Failed(item.image, item.etag, item.size, height, width, "inference", error, legs)


def _write(item: _Labelled | _Failed, target: Target) -> Outcome:
    if isinstance(item, _Failed):
        return _failed_outcome(item, target)
    started = perf_counter()
    files = _encode(item, target)
    encoded = perf_counter()
    target.require_claim()
    try:
        for file in files:
            storage.put(file.uri, file.data)
    except StorageError as error:
        legs = item.legs + Legs(encode=encoded - started, write=perf_counter() - encoded)
        height, width = item.labeled.mask.shape
        failed = _Failed(item.image, item.etag, item.size, height, width, "storage", error, legs)
        return _failed_outcome(failed, target)
    legs = item.legs + Legs(encode=encoded - started, write=perf_counter() - encoded)
    return Outcome(_labelled_row(item, target, *files), legs, None)


def _encode(item: _Labelled, target: Target) -> list[_File]:
    """The mask, and the confidence map where it is wanted."""
    mask, key = item.labeled.mask, item.image.mask_key
    files = [_File(storage.join(target.masks_root, key), encode_mask(mask, target.palette))]
    if target.confidence_maps_root is not None:
        height, width = mask.shape
        data = encode_confidence_map(item.labeled.confidence_map, height, width)
        files.append(_File(storage.join(target.confidence_maps_root, key), data))
    return files


def _labelled_row(item: _Labelled, target: Target, mask: _File, confidence_map: _File | None = None) -> Row:
    labeled = item.labeled
    by_class = [float(value) for value in labeled.class_confidences]
    decision, reason = route(labeled.discriminator_score, by_class, target.policy, target.model_id)
    height, width = labeled.mask.shape
    return Row(
        image_uri=item.image.image_uri,
        image_etag=item.etag,
        image_bytes=item.size,
        image_width=width,
        image_height=height,
        mask_uri=mask.uri,
        mask_sha256=hashlib.sha256(mask.data).hexdigest(),
        decision=decision,
        reason=reason,
        confidence=_finite(labeled.confidence),
        discriminator_score=_finite(labeled.discriminator_score),
        class_fractions=[float(value) for value in labeled.class_fractions],
        class_confidences=[_finite(value) for value in by_class],
        audit=False,
        inclusion_probability=0.0,
        model_id=target.model_id,
        policy_id=target.policy.policy_id if target.policy else None,
        run_id=target.run_id,
        shard=item.image.shard,
        labeled_at=datetime.now(UTC),
        error=None,
        confidence_map_uri=confidence_map.uri if confidence_map else None,
    )


def _failed_outcome(item: _Failed, target: Target) -> Outcome:
    row = Row(
        image_uri=item.image.image_uri,
        image_etag=item.etag,
        image_bytes=item.size,
        image_width=item.width,
        image_height=item.height,
        mask_uri=None,
        mask_sha256=None,
        decision="failed",
        reason=item.reason,
        confidence=None,
        discriminator_score=None,
        class_fractions=None,
        class_confidences=None,
        audit=False,
        inclusion_probability=0.0,
        model_id=target.model_id,
        policy_id=target.policy.policy_id if target.policy else None,
        run_id=target.run_id,
        shard=item.image.shard,
        labeled_at=datetime.now(UTC),
        error=_one_line(item.error),
    )
    return Outcome(row, item.legs, item.error)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split()) or "no message"
    return storage.redact(said if isinstance(error, SegpipeError) else f"{type(error).__name__}: {said}")
