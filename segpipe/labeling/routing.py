"""Which masks are accepted: the policy's threshold and guards, and nothing without a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segpipe.confidence.policy import check_policy_for_model, is_guarded

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.manifests.schema import Decision, RoutingReason


def route(
    score: float, class_confidences: Sequence[float], policy: Policy | None, model_id: str
) -> tuple[Decision, RoutingReason]:
    """Decision and reason for a raw discriminator score; accepted only at or above a certified threshold.

    `class_confidences` (K,) are 0 to 1, NaN for a class not in the mask; a guarded class below its minimum
    sends the mask to review whatever the score. Raises PolicyError for a policy made for another model.
    """
    if policy is None:
        return "review", "no_policy"
    check_policy_for_model(policy, model_id)
    if is_guarded(policy, class_confidences):
        return "review", "low_confidence"
    if policy.threshold is not None and math.isfinite(score) and score >= policy.threshold:
        return "accepted", "confident"
    return "review", "low_confidence"
