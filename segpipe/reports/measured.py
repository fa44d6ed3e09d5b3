"""The images of an evaluation that can be measured, and what a policy decides about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segpipe.confidence.policy import BadFractionPromise, Policy, for_image, is_guarded

if TYPE_CHECKING:
    from segpipe.evaluation.measure import Measurements

ROUTING_SCORE = "discriminator"


@dataclass(frozen=True)
class Measured:
    """The n images whose IoU is known, the only ones that can be compared: (n,) each, `scores` per name,
    `class_confidences` (n, K)."""

    keys: tuple[str, ...]
    scores: dict[str, NDArray[np.float64]]
    confidences: NDArray[np.float64]
    class_confidences: NDArray[np.float64]
    ious: NDArray[np.float64]

    @property
    def routing_scores(self) -> NDArray[np.float64]:
        """The score that a policy's threshold is compared with."""
        return self.scores[ROUTING_SCORE]


@dataclass(frozen=True)
class Routing:
    """What a policy does with n images: `accepted` (n,) bool.

    threshold: the lowest score it accepts, None when it accepts nothing. min_iou: a mask below it is bad,
    None when the policy promises a mean loss.
    """

    accepted: NDArray[np.bool_]
    threshold: float | None
    min_iou: float | None


def measured_images(measurements: Measurements) -> Measured:
    """The images that have a labelled pixel."""
    known = ~np.isnan(measurements.image_ious)
    return Measured(
        keys=tuple(key for key, has_iou in zip(measurements.keys, known, strict=True) if has_iou),
        scores={name: values[known] for name, values in measurements.scores.items()},
        confidences=measurements.confidences[known],
        class_confidences=measurements.class_confidences[known],
        ious=measurements.image_ious[known],
    )


def _threshold(policy: Policy, key: str) -> float:
    """Of the image of this key; above all scores where nothing is accepted."""
    own = for_image(policy, key)
    return math.inf if own is None or own.threshold is None else own.threshold


def routing_under(policy: Policy, measured: Measured) -> Routing:
    """What the policy's threshold and guards do with these images."""
    scores = measured.routing_scores
    threshold = [_threshold(policy, key) for key in measured.keys]
    promised = policy.promised
    min_iou = promised.min_iou if isinstance(promised, BadFractionPromise) else None
    guarded = np.array([is_guarded(policy, row) for row in measured.class_confidences.tolist()], dtype=bool)
    return Routing(np.isfinite(scores) & (scores >= threshold) & ~guarded, policy.threshold, min_iou)
