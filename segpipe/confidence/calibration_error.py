"""How far the IoU that is shown lies from the IoU that is true."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.confidence.display import displayed, fit_display_map

FOLDS = 5
FEWEST_IMAGES = 10
SEED = 0


def expected_calibration_error(predicted: ArrayLike, actual: ArrayLike, n_bins: int = 10) -> float:
    """Mean over images of |mean predicted - mean actual| of the image's bin, for two (n,) arrays of 0..1.

    Bins hold equally many images, in order of `predicted` (fewer bins than asked when there are fewer
    images). Images with equal predictions share their mean, so the order of the rows does not matter. Naeini,
    Cooper and Hauskrecht 2015, "Obtaining well calibrated probabilities using Bayesian binning", with IoU in
    place of accuracy and bins of equal counts. Raises ValueError for other shapes, no image or NaN.
    """
    shown, true = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if shown.ndim != 1 or shown.shape != true.shape or not shown.size:
        raise ValueError(f"predicted {shown.shape} and actual {true.shape}: give one of each per image")
    if np.isnan(shown).any() or np.isnan(true).any():
        raise ValueError("predicted or actual holds NaN: leave out images that could not be measured")
    distinct, tie, sizes = np.unique(shown, return_inverse=True, return_counts=True)
    gaps = np.repeat(distinct - np.bincount(tie, weights=true) / sizes, sizes)
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, n_bins)) / len(gaps))


def error_of_a_perfect_map(
    predicted: ArrayLike, actual: ArrayLike, group: ArrayLike | None = None, n_bins: int = 10
) -> float | None:
    """About what `expected_calibration_error` finds of a map that shows just the expected IoU of each image.

    Two (n,) arrays of 0..1. In a bin the IoUs scatter around what is shown, so that their mean is off by
    chance: by sqrt(2 / pi) of its standard error on average, which is taken from the scatter in the bin.
    Images of a `group` (n,) scatter together. None where a bin has fewer than two groups, or images.
    """
    shown, true = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    clusters = np.arange(len(shown)) if group is None else np.unique(group, return_inverse=True)[1]
    order = np.argsort(shown, kind="stable")
    bins = [part for part in np.array_split(order, n_bins) if part.size]
    spreads = [_spread_of_sum((true - shown)[part], clusters[part]) for part in bins]
    if any(spread is None for spread in spreads):
        return None
    return math.sqrt(2 / math.pi) * sum(spread or 0.0 for spread in spreads) / len(shown)


def _spread_of_sum(gaps: NDArray[np.float64], clusters: NDArray[np.int64]) -> float | None:
    """Standard deviation of the sum of the gaps, whose clusters are independent; None for a single one."""
    _, member = np.unique(clusters, return_inverse=True)
    n = int(member.max()) + 1
    if n < 2:
        return None
    sums = np.bincount(member, weights=gaps - gaps.mean())
    return float(np.sqrt((sums**2).sum() * n / (n - 1))) / _shrinkage(n)


def _shrinkage(n: int) -> float:
    """Of the standard deviation that n independent normal values show, on average, to the true one."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def cross_validated_error(scores: ArrayLike, ious: ArrayLike, group: ArrayLike | None = None) -> float | None:
    """Calibration error of the display map on images that it was not fitted to; None below ten images.

    As `cross_validated_map`; None also when there is a single group.
    """
    shown = cross_validated_map(scores, ious, group)
    return None if shown is None else expected_calibration_error(shown, ious)


def cross_validated_map(
    scores: ArrayLike, ious: ArrayLike, group: ArrayLike | None = None
) -> NDArray[np.float64] | None:
    """What the display map shows for images that it was not fitted to, (n,); None below ten images.

    `scores` (n,) finite, `ious` (n,) 0 to 1. Each of five random folds (seeded), or with `group` (n,) each
    group, is shown through the map fitted to all others; None also when there is a single group.
    """
    score_values, true = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    fold = _random_folds(len(true)) if group is None else np.unique(group, return_inverse=True)[1]
    if len(true) < FEWEST_IMAGES or fold.max() == 0:
        return None
    shown = np.empty(len(true))
    for held_back in _memberships(fold):
        shown[held_back] = displayed(
            score_values[held_back], fit_display_map(score_values[~held_back], true[~held_back])
        )
    return shown


def _random_folds(n_images: int) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).permutation(n_images) % FOLDS


def _memberships(fold: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    return (fold == number for number in range(fold.max() + 1))
