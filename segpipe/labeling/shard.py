"""Planned images in, finished rows out: batches of them fetched, computed and written, all overlapping.

The outcomes keep the images' order, and a bounded number of batches is in work, so memory does not grow with
their number.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from threading import Event, Semaphore
from time import perf_counter
from typing import TYPE_CHECKING

from segpipe.labeling.batch import BATCH_BYTES, BatchWork, Machine, label_batch, planned_batches
from segpipe.labeling.decoding import DecodingLimits
from segpipe.labeling.giving_up import stop_when_too_many_fail
from segpipe.labeling.items import ImageLabeler, Outcome, PlannedImage
from segpipe.labeling.judging import BatchLimit
from segpipe.labeling.legs import Legs
from segpipe.labeling.limits import Budget
from segpipe.labeling.ordered import ordered_map
from segpipe.labeling.rows import Target

if TYPE_CHECKING:
    from segpipe.config import LabelSettings


def label_images(
    images: Iterable[PlannedImage], labeler: ImageLabeler, target: Target, settings: LabelSettings
) -> Generator[Outcome, None, None]:
    """Label the images in order; each outcome's mask, and its confidence map, is stored before it is yielded.

    An image that cannot be read, decoded, labelled or written becomes a failed row. Raises RunError when too
    many fail, or when the claim is lost.
    """
    budget = Budget(settings.max_image_pixels)
    decoding = DecodingLimits(settings.max_image_pixels, settings.decode_seconds, budget)
    work = BatchWork(labeler, target, settings.max_image_bytes, decoding)
    limit, device = BatchLimit(settings.batch_images), Semaphore(labeler.judged_at_once)
    fetched_bytes, stopping = Budget(BATCH_BYTES * (labeler.computed_at_once + 1)), Event()
    threads = labeler.computed_at_once + settings.fetch_threads
    with labeler.compute_threads() as computing, ThreadPoolExecutor(threads) as batches:
        machine = Machine(computing, device, limit, fetched_bytes, stopping)
        label = partial(label_batch, work=work, machine=machine)
        planned = planned_batches(images, limit)
        labelled = chain.from_iterable(ordered_map(batches, label, planned, 2 * threads))
        try:
            yield from stop_when_too_many_fail(_timed(labelled), settings.max_failure_rate)
        finally:  # also of a run that ends early
            stopping.set()
            batches.shutdown(wait=False, cancel_futures=True)
            computing.shutdown(wait=False, cancel_futures=True)


def _timed(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    started = perf_counter()
    for outcome in outcomes:
        waited = Legs(wait=perf_counter() - started)
        yield replace(outcome, legs=outcome.legs + waited)
        started = perf_counter()
