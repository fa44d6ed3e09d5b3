"""How good masks and scores are in each group of a split: each video, camera or laboratory by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.confidence.selective import gap_closed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupEvaluation:
    """n images of a group whose IoU is known; their mean IoU and the mean of the confidence shown (0 to 1).

    gap_closed: by the score that routes, on these images alone; best_gap_closed: by the best of all scores.
    Both are NaN where they are undefined, as for a single image.
    """

    n: int
    mean_image_iou: float
    mean_confidence: float
    gap_closed: float
    best_gap_closed: float
    best_score: str


def evaluate_groups(
    groups: Sequence[str], ious: Floats, confidences: Floats, scores: dict[str, Floats], routing: str
) -> dict[str, GroupEvaluation]:
    """Each group by name, sorted. All are (n,), `scores` by name, of which `routing` routes; an IoU is NaN
    where it is unknown. A group without an image whose IoU is known is left out.
    """
    names, known = np.asarray(groups), ~np.isnan(ious)
    rows_by_group = {name: known & (names == name) for name in sorted(set(names[known].tolist()))}
    return {
        name: _group(
            ious[rows],
            confidences[rows],
            {score: gap_closed(1 - ious[rows], values[rows]) for score, values in scores.items()},
            routing,
        )
        for name, rows in rows_by_group.items()
    }


def _group(ious: Floats, confidences: Floats, gaps: dict[str, float], routing: str) -> GroupEvaluation:
    defined = {score: gap for score, gap in gaps.items() if not math.isnan(gap)}
    best = max(defined, key=lambda score: defined[score], default=routing)
    return GroupEvaluation(
        n=len(ious),
        mean_image_iou=float(ious.mean()),
        mean_confidence=float(confidences.mean()),
        gap_closed=gaps[routing],
        best_gap_closed=gaps[best],
        best_score=best,
    )
