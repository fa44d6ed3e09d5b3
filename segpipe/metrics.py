"""How good masks are: pixel accuracy and intersection over union (IoU), from confusion matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DatasetError

# Counting takes some thirty bytes a pixel; images of 100 million are counted in strips.
PIXELS_AT_ONCE = 4_000_000

# How the classes of an image make up its IoU. every_class: each of its truth or its mask counts alike, so
# that one false pixel on a clean image of two classes makes 0.5; what segpipe did at first.
# graded: a class that only the mask shows counts by how much of it there is.
IouRule = Literal["every_class", "graded"]
IOU_RULE: IouRule = "graded"
# Of models and policies from before rules had names.
UNNAMED_RULE: IouRule = "every_class"
# From this share of the labelled pixels on, a class that only the mask shows counts in full.
FULL_SHARE = 0.01


@dataclass(frozen=True)
class SegmentationMetrics:
    """Quality of masks over a whole split, each figure from 0 to 1.

    `per_class_iou` has one entry per class, None for a class in neither truth nor prediction;
    `mean_iou` is the mean over the other classes.
    """

    pixel_accuracy: float
    mean_iou: float
    per_class_iou: tuple[float | None, ...]


def confusion_matrix(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], n_classes: int, ignore_index: int
) -> NDArray[np.int64]:
    """Count pixels by (true class, predicted class); confusion matrices of several images add up.

    `truth` and `prediction` are integer class indices of one shape; pixels whose truth is `ignore_index`
    are left out. Returns (K, K) int64, rows the truth. Raises DatasetError when the shapes differ or a
    counted pixel has a class outside 0..K-1.
    """
    if truth.shape != prediction.shape:
        raise DatasetError(
            f"truth {truth.shape} and prediction {prediction.shape} differ in shape: bring them to one size"
        )
    rows = max(1, PIXELS_AT_ONCE // max(truth[:1].size, 1))
    confusion = np.zeros((n_classes, n_classes), np.int64)
    for start in range(0, len(truth), rows):
        part = slice(start, start + rows)
        confusion += _counted(truth[part], prediction[part], n_classes, ignore_index)
    return confusion


def _counted(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], n_classes: int, ignore_index: int
) -> NDArray[np.int64]:
    counted = truth != ignore_index
    true_class = _class_indices(truth[counted], n_classes, "truth")
    predicted_class = _class_indices(prediction[counted], n_classes, "prediction")
    pairs = np.bincount(true_class * n_classes + predicted_class, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes).astype(np.int64)


def segmentation_metrics(confusion: NDArray[np.int64]) -> SegmentationMetrics:
    """Pixel accuracy, per-class IoU and their mean from a (K, K) confusion matrix, rows the truth.

    Raises DatasetError when no pixel was counted, for then nothing can be said.
    """
    if confusion.sum() == 0:
        raise DatasetError("no pixel to measure: every pixel of the truth is ignored, check ignore_index")
    iou = _class_iou(confusion)
    return SegmentationMetrics(
        pixel_accuracy=float(np.trace(confusion) / confusion.sum()),
        mean_iou=float(np.nanmean(iou)),
        per_class_iou=tuple(None if np.isnan(value) else float(value) for value in iou),
    )


def image_iou(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    n_classes: int,
    ignore_index: int,
    rule: IouRule,
) -> float:
    """Mean IoU, 0 to 1, of one image over the classes in its truth or its prediction.

    Ignored pixels are left out on both sides. NaN when every pixel is ignored: such an image says nothing
    about its mask and has to be left out of means and of calibration. Raises DatasetError as
    confusion_matrix does.
    """
    return confusion_iou(confusion_matrix(truth, prediction, n_classes, ignore_index), rule)


def confusion_iou(confusion: NDArray[np.int64], rule: IouRule) -> float:
    """As image_iou, from the image's (K, K) confusion matrix, rows the truth."""
    shared = np.diagonal(confusion)
    return mean_class_iou(shared, confusion.sum(axis=1), confusion.sum(axis=0), int(confusion.sum()), rule)


def mean_class_iou(
    shared: NDArray[np.integer],
    true: NDArray[np.integer],
    shown: NDArray[np.integer],
    labelled: int,
    rule: IouRule,
) -> float:
    """Mean IoU of an image from the pixels of each class, (K,): in truth and mask, in the truth, in the mask.

    labelled: pixels in all. By the graded rule a class that is in the mask alone, whose IoU is 0, weighs as
    much as its pixels are of FULL_SHARE of the labelled ones, and at most 1; a class of the truth, however
    small, weighs 1. NaN where nothing is labelled.
    """
    union = true + shown - shared
    there = union > 0
    if not labelled or not there.any():
        return float("nan")
    weights = np.where(true > 0, 1.0, _weight_of_invented(shown / labelled, rule))[there]
    return float((weights * shared[there] / union[there]).sum() / weights.sum())


def _weight_of_invented(shares: NDArray[np.floating], rule: IouRule) -> NDArray[np.floating]:
    return np.ones_like(shares) if rule == "every_class" else np.minimum(shares / FULL_SHARE, 1.0)


def _class_indices(values: NDArray[np.integer], n_classes: int, side: str) -> NDArray[np.int64]:
    if values.size and not 0 <= values.min() <= values.max() < n_classes:
        wrong = int(values.max() if values.max() >= n_classes else values.min())
        raise DatasetError(f"{side} holds class {wrong}: use 0..{n_classes - 1} or the ignore index")
    return values.astype(np.int64)


def _class_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(confusion), np.nan), where=union > 0)
