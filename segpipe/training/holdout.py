"""Which labelled images teach the generator, which the judge, and which tune the score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HELD_BACK_SHARE = 0.2
MOST_STRETCHES = 8
SMALLEST_STRETCH = 5
TUNING_STRETCH = 2


@dataclass(frozen=True)
class Parts:
    """Rows of a split in the order of its keys: taught to the generator; held back from it, of which judged
    ones teach the judge and tuning ones fit the score. Of fewer than 10 images the held back ones do both; of
    fewer than 5 all are all of it."""

    taught: Tensor
    judged: Tensor
    tuning: Tensor


def split_parts(n_images: int) -> Parts:
    """Hold the last fifth of each of 8 equal stretches back; every fourth such fifth is for tuning.

    Whole runs of neighbouring keys, because neighbours are often frames of one sequence: a generator that has
    seen the frame before has as good as seen the frame.
    """
    rows = torch.arange(n_images)
    stretches = min(MOST_STRETCHES, n_images // SMALLEST_STRETCH)
    if stretches == 0:
        return Parts(rows, rows, rows)
    place = rows * stretches
    # In whole numbers: a fifth in floating point is sometimes a hair less than a fifth.
    held_back = (place % n_images) * 10 >= round(10 * (1 - HELD_BACK_SHARE)) * n_images
    tuning = held_back & ((place // n_images) % 4 == min(TUNING_STRETCH, stretches - 1))
    judged = held_back & ~tuning if stretches > 1 else held_back
    return Parts(rows[~held_back], rows[judged], rows[tuning])


def unseen_parts(n_images: int) -> Parts:
    """The parts where the generator was taught none of the images: a fifth, in runs of neighbouring keys as
    in split_parts, tunes the score, and the others teach the judge; of fewer than 5 all do."""
    parts = split_parts(n_images)
    nothing = torch.arange(0)
    if n_images < SMALLEST_STRETCH:
        return Parts(nothing, parts.judged, nothing)
    return Parts(nothing, parts.taught, torch.unique(torch.cat([parts.judged, parts.tuning])))


def with_corrections(parts: Parts, n_images: int, n_corrections: int) -> Parts:
    """The parts of n_images labelled ones with n_corrections rows behind them.

    Every fifth correction is held back to teach the judge; none tunes the score, which is to fit images drawn
    as the labelled ones were.
    """
    rows = torch.arange(n_images, n_images + n_corrections)
    held_back = torch.arange(n_corrections) % round(1 / HELD_BACK_SHARE) == round(1 / HELD_BACK_SHARE) - 1
    taught, judged = rows[~held_back], rows[held_back]
    return Parts(torch.cat([parts.taught, taught]), torch.cat([parts.judged, judged]), parts.tuning)
