"""One labelled image at a time: what of it matters before anyone believes a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from segpipe.concurrency import Budget, ordered_map
from segpipe.datasets import Dataset, LabelledImage, Sample, check_labelled, open_labelled
from segpipe.errors import DatasetError, SegpipeError
from segpipe.images import MAX_PIXELS, pixel_digest
from segpipe.progress import track

THREADS = 4
READ_AHEAD = 8
COUNTED_AT_ONCE = 1 << 20  # pixels

Colour = tuple[int, int, int]
Extra = TypeVar("Extra")


@dataclass(frozen=True)
class Look:
    """What one sample's files hold. values: (values in the mask, pixels of each), sorted by value; colours:
    (value, RGB) of those values in a mask with a palette; brightness: (lowest, highest) value of any channel.
    """

    height: int
    width: int
    digest: str
    orientation: int
    nearly_black: bool
    brightness: tuple[int, int]
    values: tuple[tuple[int, int], ...]
    colours: tuple[tuple[int, Colour], ...]


@dataclass(frozen=True)
class Looked(Generic[Extra]):
    """A sample, why it cannot be used (None: it can), what was seen as far as it could be read."""

    sample: Sample
    problem: str | None
    look: Look | None
    extra: Extra | None


def nothing_more(_sample: Sample, _labelled: LabelledImage) -> None:
    """No more than the look itself."""


def look_at(
    dataset: Dataset,
    samples: Sequence[Sample],
    also: Callable[[Sample, LabelledImage], Extra],
    description: str,
) -> Iterator[Looked[Extra]]:
    """Each sample, read once, in order; `also` measures more of those that can be decoded.

    A bounded number is in memory at a time. Raises StorageError for what storage refuses.
    """
    look = partial(_look, dataset, also, Budget(MAX_PIXELS))
    with ThreadPoolExecutor(THREADS) as pool, track(len(samples), description) as progress:
        for looked in ordered_map(pool, look, samples, READ_AHEAD):
            progress.advance()
            yield looked


def _look(
    dataset: Dataset, also: Callable[[Sample, LabelledImage], Extra], in_work: Budget, sample: Sample
) -> Looked[Extra]:
    try:
        with open_labelled(dataset, sample, in_work) as labelled:
            problem = _problem(dataset, sample, labelled)
            return Looked(sample, problem, _seen(labelled), also(sample, labelled))
    except DatasetError as error:
        return Looked(sample, str(error), None, None)


def _problem(dataset: Dataset, sample: Sample, labelled: LabelledImage) -> str | None:
    try:
        check_labelled(dataset, sample, labelled)
    except SegpipeError as error:
        return str(error)
    return None


def _seen(labelled: LabelledImage) -> Look:
    image, counts = labelled.image, value_counts(labelled.mask)
    values = np.flatnonzero(counts)
    palette = labelled.palette if labelled.palette is not None else np.zeros((0, 3), np.uint8)
    return Look(
        height=image.height,
        width=image.width,
        digest=pixel_digest(image.pixels),
        orientation=image.orientation,
        nearly_black=image.nearly_black,
        brightness=(int(image.pixels.min()), int(image.pixels.max())),
        values=tuple((int(value), int(counts[value])) for value in values),
        colours=tuple((int(value), as_tuple(palette[value])) for value in values if value < len(palette)),
    )


def value_counts(mask: np.ndarray) -> np.ndarray:
    """(256,) pixels of each value; in chunks, since numpy counts in a copy of eight bytes a pixel."""
    flat = mask.ravel()
    starts = range(0, len(flat), COUNTED_AT_ONCE)
    parts = [np.bincount(flat[start : start + COUNTED_AT_ONCE], minlength=256) for start in starts]
    return np.sum(parts, axis=0)


def as_tuple(colour: np.ndarray) -> Colour:
    """(3,) uint8 as a hashable RGB."""
    red, green, blue = colour.tolist()
    return red, green, blue
