"""A batch of images from storage to storage: fetched, computed by one core (decode, judge, encode), written.

Threads that hand each image on to the next stage would wait for their turn at Python and find cold caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from threading import Event, Semaphore
from typing import TypeVar

from segpipe.labeling.decoding import DecodingLimits, decode_batch
from segpipe.labeling.encoding import encode_image, finish_image
from segpipe.labeling.items import (
    EncodedImage,
    FailedImage,
    FetchedImage,
    ImageLabeler,
    JudgedImage,
    Outcome,
    PlannedImage,
)
from segpipe.labeling.judging import BatchLimit, judge_batch
from segpipe.labeling.limits import Budget
from segpipe.labeling.reading import fetch_image
from segpipe.labeling.rows import Target
from segpipe.labeling.writing import write_image

# A batch ends before it has more listed bytes; an image whose size is not listed counts for so many.
BATCH_BYTES = 128_000_000
UNLISTED_BYTES = 8_000_000
Item = TypeVar("Item")


@dataclass(frozen=True)
class Machine:
    """What the batches in work share: threads to compute in; the device's places for batches; how many images
    it takes at once; the bytes that may be fetched and not yet decoded; and whether the run has ended."""

    computing: Executor
    device: Semaphore
    limit: BatchLimit
    fetched_bytes: Budget
    stopping: Event


@dataclass(frozen=True)
class BatchWork:
    """What is done to every batch: the model, where its masks go, and what an image may cost."""

    labeler: ImageLabeler
    target: Target
    max_bytes: int
    decoding: DecodingLimits


def planned_batches(images: Iterable[PlannedImage], limit: BatchLimit) -> Iterator[list[PlannedImage]]:
    """The images in lists as long as the limit is at that time, and of bounded bytes."""
    batch: list[PlannedImage] = []
    listed = 0
    for image in images:
        listed += _listed(image)
        if batch and listed > BATCH_BYTES:
            yield batch
            batch, listed = [], _listed(image)
        batch.append(image)
        if len(batch) >= limit.images:
            yield batch
            batch, listed = [], 0
    if batch:
        yield batch


def _listed(image: PlannedImage) -> int:
    return image.image_bytes or UNLISTED_BYTES


def label_batch(images: Sequence[PlannedImage], work: BatchWork, machine: Machine) -> list[Outcome]:
    """The outcome of each image; its mask, and its confidence map, is stored before it is returned.

    Raises what target.require_claim raises, CancelledError when the run has ended, PolicyError.
    """
    to_read = [image for image in images if image.image_bytes <= work.max_bytes]
    with ExitStack() as until_decoded:
        until_decoded.enter_context(machine.fetched_bytes.held(sum(map(_listed, to_read))))
        fetched = [fetch_image(image, work.max_bytes) for image in _wanted(images, work, machine)]
        # What is logged there names this run too.
        compute = copy_context().run
        encoded = machine.computing.submit(compute, _compute, fetched, until_decoded, work, machine).result()
    return [write_image(item, work.target) for item in _wanted(encoded, work, machine)]


def _wanted(items: Iterable[Item], work: BatchWork, machine: Machine) -> Iterator[Item]:
    """The items, as long as the run goes on and holds its claim."""
    for item in items:
        _require_wanted(work, machine)
        yield item


def _require_wanted(work: BatchWork, machine: Machine) -> None:
    if machine.stopping.is_set():
        raise CancelledError
    work.target.require_claim()


def _compute(
    fetched: list[FetchedImage | FailedImage], until_decoded: ExitStack, work: BatchWork, machine: Machine
) -> list[EncodedImage | FailedImage]:
    read = decode_batch(fetched, work.labeler, work.decoding, lambda: _require_wanted(work, machine))
    fetched.clear()
    until_decoded.close()
    with machine.device:
        judged = judge_batch(read, work.labeler, machine.limit)
    return [_encode(item, work, machine) for item in _wanted(judged, work, machine)]


def _encode(item: JudgedImage | FailedImage, work: BatchWork, machine: Machine) -> EncodedImage | FailedImage:
    if isinstance(item, FailedImage):
        return item
    with work.decoding.budget.held(item.height * item.width):
        with machine.device:
            finished = finish_image(item, work.labeler)
        return finished if isinstance(finished, FailedImage) else encode_image(finished, work.target)
