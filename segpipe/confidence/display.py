"""From a raw score to the expected IoU that people are shown: an increasing map fitted to labelled images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

Knots = tuple[tuple[float, ...], tuple[float, ...]]


def fit_display_map(scores: NDArray[np.float64], ious: NDArray[np.float64]) -> Knots:
    """Isotonic fit of IoU on score: its knots, scores and IoUs, at the ends of each of its flat steps.

    `scores` (n,) finite and `ious` (n,) 0 to 1, n > 0. Zadrozny and Elkan 2002, "Transforming classifier
    scores into accurate multiclass probability estimates".
    """
    knots, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mean_iou = np.bincount(group, weights=ious) / sizes
    fitted = np.clip(isotonic_regression(mean_iou, weights=sizes).x, 0, 1)
    rises = np.diff(fitted) > 0
    step_ends = np.concatenate([[True], rises]) | np.concatenate([rises, [True]])
    return tuple(knots[step_ends].tolist()), tuple(fitted[step_ends].tolist())


def displayed(scores: ArrayLike, knots: Knots) -> NDArray[np.float64]:
    """The map's values at `scores`: linear between the knots, constant outside, 0 for NaN.

    A mask that could not be judged earns no confidence.
    """
    values = np.asarray(scores, dtype=np.float64)
    return np.where(np.isnan(values), 0.0, np.interp(values, *knots))
