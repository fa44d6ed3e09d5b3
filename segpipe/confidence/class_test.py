"""How rarely a mask is accepted that misses a class, or shows one that is not there: what labels prove of it.

Counted is [accepted and wrong] among all images that have the class (or among all that have it not), so that
a wrong mask that goes to review costs nothing. The share of that, r(t), can only fall as the threshold t
rises, since fewer masks are accepted. So the thresholds, from strict to loose, are a fixed sequence in which
the first that breaks the promise has all looser ones break it too, and the count of wrong and accepted images
grows along it: testing them one by one, with p = P(Binomial(n, max_share) <= count), and stopping at the
first that fails, errs with a probability of at most 1 - confidence. That holds for all thresholds at once,
also for those chosen after a look at scores and labels; no grid, no order of the score is assumed.

Where several promises are to hold at one threshold, each is tested at the full 1 - confidence. The threshold
in use has passed every test, so for it to break any promise one test must have passed at the strictest
threshold that breaks any: one event, of probability 1 - confidence at most, whichever promise it is. An
error is therefore not to be shared out over the promises as it would be over several thresholds (the
intersection-union test, Berger 1982; Angelopoulos et al. 2021, "Learn then Test", section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from segpipe.confidence.guarantee import fewest_accepted

ClassPromiseKind = Literal["miss", "false_alarm"]


@dataclass(frozen=True)
class Mistakes:
    """Which of n images a promise about a class counts, `concerned` (n,), and in which of those the mask is
    `wrong` (n,) about whether the class is there."""

    concerned: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def mistakes(
    kind: ClassPromiseKind, true: NDArray[np.int64], shown: NDArray[np.int64], min_object_px: int
) -> Mistakes:
    """What calibration and audit both count: `true` and `shown` (n,) are pixels of the class by the truth and
    by the mask. An image has the class, and a mask shows it, by at least `min_object_px` of them."""
    has, shows = true >= min_object_px, shown >= min_object_px
    concerned = has if kind == "miss" else ~has
    return Mistakes(concerned, concerned & (has != shows))


@dataclass(frozen=True)
class ThresholdBound:
    """The thresholds that keep a promise about a class: all above `above` (-inf: all; inf: none)."""

    above: float
    labelled_images_needed: int | None


def threshold_bound(
    wrong_scores: NDArray[np.float64], n_images: int, max_share: float, confidence: float
) -> ThresholdBound:
    """What the images that the promise is about prove.

    `wrong_scores` (k,) are the scores of those of the `n_images` whose mask is wrong, -inf for one that is
    never accepted; `max_share` and `confidence` are in (0, 1).
    """
    tolerated = most_wrong(n_images, max_share, confidence)
    if tolerated < 0:
        return ThresholdBound(math.inf, fewest_accepted(0, max_share, confidence) - n_images)
    surest_first = -np.sort(-wrong_scores)
    return ThresholdBound(float(surest_first[tolerated]) if len(surest_first) > tolerated else -math.inf, 0)


def most_wrong(n_images: int, max_share: float, confidence: float) -> int:
    """Most wrong and accepted images of so many with which the test passes; -1 when even none is too many."""
    least = int(binom.ppf(1 - confidence, n_images, max_share))  # the smallest count with at least that much
    return least if binom.cdf(least, n_images, max_share) <= 1 - confidence else least - 1


def p_value(found: int, n_images: int, max_share: float) -> float:
    """Probability of at most `found` wrong and accepted images if the share were `max_share`."""
    return float(binom.cdf(found, n_images, max_share))
