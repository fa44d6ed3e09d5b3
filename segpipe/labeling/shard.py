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

from segpipe.errors import NotFoundError, RunError
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

# So many failures in a row that do not lie in the image itself mean that storage or the model is broken.
FAILURES_IN_A_ROW = 32


def label_images(
    images: Iterable[PlannedImage], labeler: ImageLabeler, target: Target, settings: LabelSettings
) -> Generator[Outcome, None, None]:
    """Label the images in order; each outcome's mask, and its confidence map, is stored before it is yielded.

    An image that cannot be read, decoded, labelled or written becomes a failed row. Raises RunError when 32
    in a row fail in storage or in the model, or when the claim is lost.
    """
    batches_ahead = labeler.batches_at_once + 1
    images_ahead = max(settings.batch_images, settings.fetch_threads)
    limits = ReadingLimits(
        settings.max_image_pixels, settings.decode_seconds, PixelBudget(settings.max_image_pixels)
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
        found = ordered_map(readers, read, images, images_ahead + settings.batch_images)
        judged = chain.from_iterable(ordered_map(judges, judge, in_batches(found, limit), batches_ahead))
        written = ordered_map(writers, write, judged, images_ahead)
        yield from _stop_when_nothing_works(_timed(written))


def _timed(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    started = perf_counter()
    for outcome in outcomes:
        waited = Legs(wait=perf_counter() - started)
        yield replace(outcome, legs=outcome.legs + waited)
        started = perf_counter()


def _stop_when_nothing_works(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    in_a_row = 0
    for outcome in outcomes:
        in_a_row = in_a_row + 1 if _blames_surroundings(outcome) else 0
        if in_a_row >= FAILURES_IN_A_ROW:
            raise RunError(
                f"{in_a_row} images in a row failed, so run {outcome.row.run_id} stops before it fails the "
                f"rest; the last: {outcome.row.error}; mend that and resume with the same run id"
            )
        yield outcome


def _blames_surroundings(outcome: Outcome) -> bool:
    """A failure that lies in storage or the model; an image that is gone is only a fact about that image."""
    return outcome.row.reason in ("storage", "inference") and not isinstance(outcome.error, NotFoundError)
