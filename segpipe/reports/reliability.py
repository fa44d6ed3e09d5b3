"""The IoU that is shown against the IoU that is true, bin by bin: what a reliability diagram draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ReliabilityBin:
    """Images of similar confidence: its mean, the mean of their true IoU (both 0 to 1), and how many."""

    confidence: float
    iou: float
    images: int


def reliability_bins(confidences: ArrayLike, ious: ArrayLike, n_bins: int = 10) -> list[ReliabilityBin]:
    """Bins of equally many images in order of confidence, for two (n,) arrays of 0..1 without NaN.

    Images of equal confidence share their mean IoU, and bins of nothing but one confidence become one, so the
    order of the rows does not matter. The mean over images of |confidence - iou| of the bins is the
    expected_calibration_error of confidence.calibration_error.
    """
    shown, tie, sizes = np.unique(
        np.asarray(confidences, dtype=np.float64), return_inverse=True, return_counts=True
    )
    predicted = np.repeat(shown, sizes)
    actual = np.repeat(np.bincount(tie, weights=np.asarray(ious, dtype=np.float64)) / sizes, sizes)
    return [
        ReliabilityBin(float(predicted[members].mean()), float(actual[members].mean()), len(members))
        for members in _bins(predicted, n_bins)
    ]


def _bins(predicted: NDArray[np.float64], n_bins: int) -> Iterator[NDArray[np.int64]]:
    """Indices of each bin of rising values; neighbours with the same first and last value hold one value."""
    parts = np.array_split(np.arange(len(predicted)), min(n_bins, len(predicted)))
    for _, same in groupby(parts, key=lambda part: (predicted[part[0]], predicted[part[-1]])):
        yield np.concatenate(list(same))
