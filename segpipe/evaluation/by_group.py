"""How good masks and scores are in each group of a split: each video, camera or laboratory by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.confidence.selective import gap_closed


@dataclass(frozen=True)
class GroupEvaluation:
    """n images of a group whose IoU is known; their mean IoU and the mean of the confidence shown (0 to 1).

    gap_closed: of each score, on these images alone; NaN where it is undefined, as for a single image.
    """

    n: int
    mean_image_iou: float
    mean_confidence: float
    gap_closed: dict[str, float]


def evaluate_groups(
    groups: Sequence[str],
    ious: NDArray[np.float64],
    confidences: NDArray[np.float64],
    scores: dict[str, NDArray[np.float64]],
) -> dict[str, GroupEvaluation]:
    """Each group by name, sorted. All are (n,), `scores` by name; an IoU is NaN where it is unknown.

    A group without an image whose IoU is known is left out.
    """
    names, known = np.asarray(groups), ~np.isnan(ious)
    found = {}
    for name in sorted(set(names[known].tolist())):
        rows = known & (names == name)
        found[name] = GroupEvaluation(
            n=int(rows.sum()),
            mean_image_iou=float(ious[rows].mean()),
            mean_confidence=float(confidences[rows].mean()),
            gap_closed={score: gap_closed(1 - ious[rows], values[rows]) for score, values in scores.items()},
        )
    return found
