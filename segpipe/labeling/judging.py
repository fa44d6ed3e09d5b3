"""Prepared images to judged ones, a batch at a time; a batch too large for the device's memory is halved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any, TypeVar

from segpipe.errors import DeviceMemoryError, SegpipeError
from segpipe.labeling.items import FailedImage, ImageLabeler, JudgedImage, ReadImage, one_line
from segpipe.labeling.legs import Legs

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


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


def in_batches(items: Iterable[Item], limit: BatchLimit) -> Iterator[list[Item]]:
    """The items in lists as long as the limit is at that time."""
    items = iter(items)
    while batch := list(islice(items, limit.images)):
        yield batch


def judge_batch(
    batch: Sequence[ReadImage | FailedImage], labeler: ImageLabeler, limit: BatchLimit
) -> list[JudgedImage | FailedImage]:
    """Judge what could be read; what failed before keeps its place."""
    read = (item for item in batch if isinstance(item, ReadImage))
    judged = iter([result for part in in_batches(read, limit) for result in _judge(part, labeler, limit)])
    return [item if isinstance(item, FailedImage) else next(judged) for item in batch]


def _judge(
    images: list[ReadImage], labeler: ImageLabeler, limit: BatchLimit
) -> list[JudgedImage | FailedImage]:
    started = perf_counter()
    try:
        answers = labeler.judge([image.pixels for image in images])
    except DeviceMemoryError as error:
        if len(images) == 1:
            return [_failed(images[0], error, perf_counter() - started)]
        limit.lower_below(len(images))
        return [result for part in in_batches(images, limit) for result in _judge(part, labeler, limit)]
    except SegpipeError:
        raise
    except Exception as error:
        if len(images) == 1:
            return [_failed(images[0], error, perf_counter() - started)]
        logger.info("a batch of %d images failed (%s), trying them one by one", len(images), one_line(error))
        return [result for image in images for result in _judge([image], labeler, limit)]
    seconds = (perf_counter() - started) / len(images)
    return [_judged(image, answer, seconds) for image, answer in zip(images, answers, strict=True)]


def _judged(image: ReadImage, answer: Any, seconds: float) -> JudgedImage:
    return JudgedImage(image.seen, answer, image.height, image.width, image.legs + Legs(infer=seconds))


def _failed(image: ReadImage, error: Exception, seconds: float) -> FailedImage:
    legs = image.legs + Legs(infer=seconds)
    return FailedImage(image.seen, image.height, image.width, "inference", error, legs)
