"""Planned images in, finished rows out: read, judge and write, all overlapping.

Each stage has threads of its own, keeps the images' order and works a bounded number of images ahead, so
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING

from segpipe.labeling.giving_up import stop_when_too_many_fail
from segpipe.labeling.items import ImageLabeler, Outcome, PlannedImage
from segpipe.labeling.judging import BatchLimit, in_batches, judge_batch
from segpipe.labeling.legs import Legs
from segpipe.labeling.limits import PixelBudget
from segpipe.labeling.ordered import ordered_map
from segpipe.labeling.reading import ReadingLimits, read_image
from segpipe.labeling.rows import Target
from segpipe.labeling.writing import write_image

if TYPE_CHECKING:
    from segpipe.config import LabelSettings

READ_BATCHES_AHEAD = 4


def label_images(
    images: Iterable[PlannedImage], labeler: ImageLabeler, target: Target, settings: LabelSettings
) -> Generator[Outcome, None, None]:
    """Label the images in order; each outcome's mask, and its confidence map, is stored before it is yielded.

    An image that cannot be read, decoded, labelled or written becomes a failed row. Raises RunError when too
    many fail, or when the claim is lost.
    """
    batches_ahead = labeler.batches_at_once + 1
    # Read images are small, and those that wait outlast a slow request.
    reads_ahead = READ_BATCHES_AHEAD * settings.batch_images + settings.fetch_threads
    writes_ahead = settings.batch_images + settings.encode_threads
    limits = ReadingLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        seconds=settings.decode_seconds,
        budget=PixelBudget(settings.max_image_pixels),
    )
    limit = BatchLimit(settings.batch_images)
    with (
        ThreadPoolExecutor(settings.fetch_threads) as readers,
        labeler.judging_threads() as judges,
        ThreadPoolExecutor(settings.encode_threads) as writers,
    ):
        read = partial(read_image, labeler=labeler, limits=limits)
        judge = partial(judge_batch, labeler=labeler, limit=limit)
        write = partial(write_image, labeler=labeler, target=target)
        found = ordered_map(readers, read, images, reads_ahead)
        judged = chain.from_iterable(ordered_map(judges, judge, in_batches(found, limit), batches_ahead))
        written = ordered_map(writers, write, judged, writes_ahead)
        yield from stop_when_too_many_fail(_timed(written), settings.max_failure_rate)


def _timed(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    started = perf_counter()
    for outcome in outcomes:
        waited = Legs(wait=perf_counter() - started)
        yield replace(outcome, legs=outcome.legs + waited)
        started = perf_counter()
