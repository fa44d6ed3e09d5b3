"""A certificate from all images of each group, such as the frames of a video, with the group as the unit.

Frames of a group depend on each other, groups do not. So each group makes one bet, on the sum over its frames
of [accepted] (limit - loss), which is above zero on average where the promise holds. Divided by the group's
own size that is the promise about a random image of a random group; divided by the size of the largest
group, alike for all, it is that about a random mask: both the losses and the accepted masks add up over
groups as they will when all are labelled. (There the largest group is the bound of all to come, and what
small ones say is worth less, in the share that the mean size is of the largest: the price of that promise.)

The bets are those of betting.py. Drawing one image of each group and counting is the better test where
groups are few: betting on means that are small beside what a group could lose cannot win fast. Which test is
used depends on nothing but the number of groups, their sizes and what is to be promised, never on a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.confidence.betting import betting_p_value, losses_needed
from segpipe.confidence.guarantee import SEED, candidate_thresholds

Floats = NDArray[np.float64]
PromiseAbout = Literal["groups", "masks"]

COVERAGE_STEP = 0.02
LOSS_EXPECTED = 0.5  # of the limit, in what the first test accepts
LATEST_START = 0.5  # of all images: a test that must begin with more of them reaches into the doubtful ones
FEWEST_IMAGES = 2  # a group; more of them are what the test gains from


@dataclass(frozen=True)
class WholeGroups:
    """The loosest threshold that passed, None when none did, and its p-value (1 then).

    labelled_groups_needed: about so many more groups like these are needed, 0 with a threshold, None when no
    number is expected to help.
    """

    threshold: float | None
    p_value: float
    labelled_groups_needed: int | None


def worth(sizes: NDArray[np.int64], about: PromiseAbout) -> float:
    """What the images of a group are worth on average, of what they could be at most: 0 to 1."""
    return 1.0 if about == "groups" else float(sizes.mean() / sizes.max())


def are_enough(sizes: NDArray[np.int64], about: PromiseAbout, limit: float, confidence: float) -> bool:
    """Whether groups of these sizes, (n,), are better used whole; decided without scores and labels."""
    start = first_coverage(len(sizes), worth(sizes, about), limit, confidence)
    return sizes.mean() >= FEWEST_IMAGES and start is not None and start <= LATEST_START


def first_coverage(n_groups: int, worth: float, limit: float, confidence: float) -> float | None:
    """The least share of images with which a test passes that loses half of `limit`; None: not even all."""
    for coverage in np.arange(1, round(1 / COVERAGE_STEP) + 1) * COVERAGE_STEP:
        loss = limit * (1 - coverage * worth * (1 - LOSS_EXPECTED))
        if betting_p_value(np.full(n_groups, loss), limit, confidence) <= 1 - confidence:
            return float(coverage)
    return None


def whole_group_thresholds(scores: Floats, start: float) -> tuple[float, ...]:
    """Thresholds from strict to loose that accept a share `start` (0 to 1) of the images and more."""
    return candidate_thresholds(scores, [*np.arange(start, 1 - COVERAGE_STEP / 2, COVERAGE_STEP), 1.0])


def certify_whole_groups(
    scores: Floats,
    losses: Floats,
    group: NDArray[np.str_],
    about: PromiseAbout,
    thresholds: tuple[float, ...],
    limit: float,
    confidence: float,
) -> WholeGroups:
    """Find the loosest threshold at which what is accepted loses at most `limit` on average.

    `scores`, `losses` (0 to 1) and `group` are (n,). The thresholds, fixed without the losses, are tested
    from strict to loose until one fails, those that could not pass without any loss left out.
    """

    payoff = _payoff(group, about)

    def p_value(threshold: float, lost: Floats) -> float:
        return betting_p_value(_group_losses(scores >= threshold, lost, payoff, limit), limit, confidence)

    lossless = np.zeros_like(losses)
    strict_to_loose = [
        one for one in sorted(thresholds, reverse=True) if p_value(one, lossless) <= 1 - confidence
    ]
    tested = ((one, p_value(one, losses)) for one in strict_to_loose)
    passed = list(takewhile(lambda found: found[1] <= 1 - confidence, tested))
    if passed:
        return WholeGroups(*passed[-1], 0)
    if not strict_to_loose:
        return WholeGroups(None, 1.0, None)
    first = _group_losses(scores >= strict_to_loose[0], losses, payoff, limit)
    needed = losses_needed(first, limit, confidence)
    return WholeGroups(None, 1.0, None if needed is None else max(needed - len(first), 1))


@dataclass(frozen=True)
class _Payoff:
    """Whose bet each image (n,) is part of, in an order shuffled beforehand (seeded), and by what each of the
    bets is divided."""

    bet: NDArray[np.int64]
    scale: Floats


def _payoff(group: NDArray[np.str_], about: PromiseAbout) -> _Payoff:
    _, member, sizes = np.unique(group, return_inverse=True, return_counts=True)
    order = np.random.default_rng(SEED).permutation(len(sizes))
    place = np.empty(len(sizes), np.int64)
    place[order] = np.arange(len(sizes))
    scale = sizes[order] if about == "groups" else np.full(len(sizes), sizes.max())
    return _Payoff(place[member], scale.astype(np.float64))


def _group_losses(accepted: NDArray[np.bool_], losses: Floats, payoff: _Payoff, limit: float) -> Floats:
    """What each group loses, 0 to 1. An image that is not accepted loses just what it may."""
    excess = np.bincount(payoff.bet, weights=np.where(accepted, losses - limit, 0.0))
    return np.clip(limit + excess / payoff.scale, 0, 1)
