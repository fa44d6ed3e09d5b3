"""How far the IoU that is shown lies from the IoU that is true."""

from __future__ import annotations

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


def cross_validated_error(scores: ArrayLike, ious: ArrayLike, group: ArrayLike | None = None) -> float | None:
    """Calibration error of the display map on images that it was not fitted to; None below ten images.

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
    return expected_calibration_error(shown, true)


def _random_folds(n_images: int) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).permutation(n_images) % FOLDS


def _memberships(fold: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    return (fold == number for number in range(fold.max() + 1))
