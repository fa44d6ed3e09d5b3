"""The shards of a run labelled on this machine: batches fetched, computed and written, all overlapping.

The outcomes keep the images' order, and a bounded number of batches is in work, so memory does not grow with
their number.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from threading import Event, Semaphore
from time import perf_counter
from typing import TYPE_CHECKING

from segpipe.concurrency import Budget, ordered_map
from segpipe.labeling.batch import BATCH_BYTES, BatchWork, Machine, label_batch, planned_batches
from segpipe.labeling.engines.work import Work
from segpipe.labeling.gathering import MASK_PIXELS_AT_ONCE, Gathering, served
from segpipe.labeling.giving_up import stop_when_source_is_gone, stop_when_too_many_fail
from segpipe.labeling.items import FinishedShard, ImageLabeler, Legs, Outcome, PlannedImage, Target, Threads
from segpipe.labeling.place import target_of
from segpipe.labeling.steps import BatchLimit, DecodingLimits, NearlyBlack, judge_at_size
from segpipe.logs import log_ids

if TYPE_CHECKING:
    from segpipe.config import LabelSettings


def require_installed() -> None:
    """Nothing is needed that segpipe does not have anyway."""


def finished_shards(work: Work) -> Generator[FinishedShard, None, None]:
    """Label the images of the shards in order; advance is told of each image that is done.

    All masks of a shard are stored before it is yielded. Raises RunError when too many images fail, or when
    the claim is lost.
    """
    labeler, target = work.labeler, target_of(work.place, work.claim.require_alive)
    threads = threads_of(labeler, work.settings)
    with closing(label_images(work.images, labeler, target, work.settings)) as outcomes:
        started = perf_counter()
        for shard, group in groupby(outcomes, key=lambda outcome: outcome.row.shard):
            with log_ids(shard=shard):
                finished = list(_advancing(group, work.advance))
            yield shard_of(shard, finished, perf_counter() - started, threads)
            started = perf_counter()


def threads_of(labeler: ImageLabeler, settings: LabelSettings) -> Threads:
    """How many threads one process labels in."""
    return Threads(labeler.computed_at_once + settings.fetch_threads, labeler.computed_at_once)


def shard_of(shard: int, outcomes: Sequence[Outcome], seconds: float, threads: Threads) -> FinishedShard:
    """A shard of these outcomes, which took so long."""
    legs = sum((outcome.legs for outcome in outcomes), start=Legs())
    return FinishedShard(shard, tuple(outcome.row for outcome in outcomes), seconds, legs, threads)


def _advancing(outcomes: Iterable[Outcome], advance: Callable[[int], None]) -> Iterator[Outcome]:
    for outcome in outcomes:
        advance(1)
        yield outcome


# How many images of the largest size may be in memory at their own size until they are labelled.
OWN_SIZE_IMAGES = 2
# How many times what a GPU makes in one go may be waiting, as masks, to be encoded.
MASK_BATCHES = 8


def label_images(
    images: Iterable[PlannedImage], labeler: ImageLabeler, target: Target, settings: LabelSettings
) -> Generator[Outcome, None, None]:
    """Label the images in order; each outcome's mask, and its confidence map, is stored before it is yielded.

    An image that cannot be read, decoded, labelled or written becomes a failed row. Raises RunError when too
    many fail, or when SOURCE or the claim is gone.
    """
    return label_batches(partial(planned_batches, images), labeler, target, settings)


def label_batches(
    cut: Callable[[BatchLimit], Iterator[list[PlannedImage] | None]],
    labeler: ImageLabeler,
    target: Target,
    settings: LabelSettings,
) -> Generator[Outcome, None, None]:
    """As label_images, of batches that are cut as long as the limit is at that time; None: none for now."""
    budget, at_own_size = (Budget(times * settings.max_image_pixels) for times in (1, OWN_SIZE_IMAGES))
    decoding = DecodingLimits(settings.max_image_pixels, settings.decode_seconds, budget, at_own_size)
    nearly_black = NearlyBlack()
    work = BatchWork(labeler, target, settings.max_image_bytes, decoding, nearly_black)
    limit, device = BatchLimit(settings.batch_images), Semaphore(labeler.judged_at_once)
    fetched_bytes, stopping = Budget(BATCH_BYTES * (labeler.computed_at_once + 1)), Event()
    mask_pixels = Budget(MASK_BATCHES * MASK_PIXELS_AT_ONCE)
    threads = threads_of(labeler, settings).moving
    with (
        _gathering(labeler, settings.batch_images) as gathering,
        labeler.compute_threads() as computing,
        ThreadPoolExecutor(threads) as batches,
    ):
        machine = Machine(computing, device, limit, fetched_bytes, stopping, gathering, mask_pixels)
        label = partial(label_batch, work=work, machine=machine)
        labelled = chain.from_iterable(ordered_map(batches, label, cut(limit), 2 * threads))
        try:
            there = stop_when_source_is_gone(_timed(labelled), target.require_source)
            yield from stop_when_too_many_fail(there, settings.max_failure_rate)
        finally:  # also of a run that ends early
            stopping.set()
            batches.shutdown(wait=False, cancel_futures=True)
            computing.shutdown(wait=False, cancel_futures=True)
            nearly_black.say()


@contextmanager
def _gathering(labeler: ImageLabeler, batch_images: int) -> Iterator[Gathering | None]:
    """Where the images of all threads wait for a GPU, and are judged; None: each thread judges its own."""
    if labeler.gathered_images is None:
        yield None
        return
    limit = BatchLimit(max(labeler.gathered_images, batch_images))
    gathering = Gathering(partial(judge_at_size, labeler=labeler, limit=limit), limit)
    with labeler.device_threads() as threads, served(gathering, threads, labeler.judged_at_once):
        yield gathering


def _timed(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    started = perf_counter()
    for outcome in outcomes:
        waited = Legs(wait=perf_counter() - started)
        yield replace(outcome, legs=outcome.legs + waited)
        started = perf_counter()
