"""Which masks are accepted: the policy's threshold, and nothing without a policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from segpipe.confidence.policy import check_policy_for_model

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.manifests.schema import Decision, RoutingReason


def route(score: float, policy: Policy | None, model_id: str) -> tuple[Decision, RoutingReason]:
    """Decision and reason for a raw discriminator score; accepted only at or above a certified threshold.

    Raises PolicyError when the policy was made for another model.
    """
    if policy is None:
        return "review", "no_policy"
    check_policy_for_model(policy, model_id)
    if policy.threshold is not None and math.isfinite(score) and score >= policy.threshold:
        return "accepted", "confident"
    return "review", "low_confidence"
