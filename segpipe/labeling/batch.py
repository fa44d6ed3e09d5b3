"""A batch of images from storage to storage: fetched, computed by one core (decode, judge, encode), written.

Threads that hand each image on to the next stage would wait for their turn at Python and find cold caches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass

from segpipe.labeling.decoding import DecodingLimits, decode_batch
from segpipe.labeling.encoding import encode_image
from segpipe.labeling.items import (
    EncodedImage,
    FailedImage,
    FetchedImage,
    ImageLabeler,
    Outcome,
    PlannedImage,
)
from segpipe.labeling.judging import BatchLimit, judge_batch
from segpipe.labeling.limits import Budget
from segpipe.labeling.reading import fetch_image
from segpipe.labeling.rows import Target
from segpipe.labeling.writing import write_image


@dataclass(frozen=True)
class Machine:
    """What the batches in work share: threads to compute in, one per core; the device's places for batches;
    the bytes that may wait to be decoded; and how many images the device takes at once."""

    cores: Executor
    device: threading.Semaphore
    fetched_bytes: Budget
    limit: BatchLimit


@dataclass(frozen=True)
class BatchWork:
    """What is done to every batch: the model, where its masks go, and what an image may cost."""

    labeler: ImageLabeler
    target: Target
    max_bytes: int
    decoding: DecodingLimits


def label_batch(images: Sequence[PlannedImage], work: BatchWork, machine: Machine) -> list[Outcome]:
    """The outcome of each image; its mask, and its confidence map, is stored before it is returned."""
    listed = sum(image.image_bytes for image in images if image.image_bytes <= work.max_bytes)
    with machine.fetched_bytes.held(listed):
        fetched = [fetch_image(image, work.max_bytes) for image in images]
        # What is logged there names this run too.
        computed = machine.cores.submit(copy_context().run, _compute, fetched, work, machine)
        del fetched
        encoded = computed.result()
    return [write_image(item, work.target) for item in encoded]


def _compute(
    fetched: Sequence[FetchedImage | FailedImage], work: BatchWork, machine: Machine
) -> list[EncodedImage | FailedImage]:
    read = decode_batch(fetched, work.labeler, work.decoding)
    with machine.device:
        judged = judge_batch(read, work.labeler, machine.limit)
    return [encode_image(item, work.labeler, work.target) for item in judged]
