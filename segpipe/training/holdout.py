"""Which labelled images teach the generator, which the judge, and which tune the score."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_BACK_SHARE, TUNING_SHARE = 0.2, 0.25
FEWEST_GROUPS = 4
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


def split_parts(n_images: int, groups: Sequence[str] | None = None) -> Parts:
    """Hold about a fifth of the images back, a quarter of those for tuning.

    groups: what each image belongs to, such as its video. Of four groups or more whole ones are held back:
    who has seen a frame of a video has as good as seen the next. Of fewer, and without groups, it is the last
    fifth of each of 8 equal stretches of neighbouring keys, group by group, since neighbours are often frames
    of one video.
    """
    if groups is None:
        return _by_stretches(n_images)
    if len(set(groups)) >= FEWEST_GROUPS:
        return _by_groups(groups)
    order = torch.tensor(sorted(range(n_images), key=lambda row: (groups[row], row)))
    parts = _by_stretches(n_images)
    return Parts(*(torch.sort(order[part]).values for part in (parts.taught, parts.judged, parts.tuning)))


def _by_stretches(n_images: int) -> Parts:
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


def unseen_parts(n_images: int, groups: Sequence[str] | None = None) -> Parts:
    """The parts where the generator was taught none of the images: a fifth, held back as in split_parts,
    tunes the score, and the others teach the judge; of fewer than 5 all do."""
    parts = split_parts(n_images, groups)
    nothing = torch.arange(0)
    if n_images < SMALLEST_STRETCH:
        return Parts(nothing, parts.judged, nothing)
    return Parts(nothing, parts.taught, torch.unique(torch.cat([parts.judged, parts.tuning])))


def _by_groups(groups: Sequence[str]) -> Parts:
    sizes = Counter(groups)
    held_back = _closest(sizes, HELD_BACK_SHARE * len(groups), at_least=2)
    tuning = _closest({name: sizes[name] for name in held_back}, TUNING_SHARE * held_back.total(), at_least=1)
    rows = torch.arange(len(groups))
    is_tuning, is_held = (torch.tensor([name in part for name in groups]) for part in (tuning, held_back))
    return Parts(rows[~is_held], rows[is_held & ~is_tuning], rows[is_tuning])


def _closest(sizes: Mapping[str, int], wanted: float, at_least: int) -> Counter[str]:
    """So many groups, or more but never all, whose images come closest to a number; each time the one that
    brings it closest is taken, of equals the first by its digest, which no order of names favours."""
    order = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    taken: Counter[str] = Counter()
    while len(taken) < len(sizes) - 1:
        left = [name for name in order if name not in taken]
        best = min(left, key=lambda name: abs(taken.total() + sizes[name] - wanted))
        is_closer = abs(taken.total() + sizes[best] - wanted) < abs(taken.total() - wanted)
        if len(taken) >= at_least and not is_closer:
            break
        taken[best] = sizes[best]
    return taken


def with_corrections(parts: Parts, n_images: int, n_corrections: int) -> Parts:
    """The parts of n_images labelled ones with n_corrections rows behind them.

    Every fifth correction is held back to teach the judge; none tunes the score, which is to fit images drawn
    as the labelled ones were.
    """
    rows = torch.arange(n_images, n_images + n_corrections)
    held_back = torch.arange(n_corrections) % round(1 / HELD_BACK_SHARE) == round(1 / HELD_BACK_SHARE) - 1
    taught, judged = rows[~held_back], rows[held_back]
    return Parts(torch.cat([parts.taught, taught]), torch.cat([parts.judged, judged]), parts.tuning)
