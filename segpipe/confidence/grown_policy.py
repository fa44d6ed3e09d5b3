"""The policy that follows from a calibrated one and the answers about drawn masks."""

from __future__ import annotations

import math
from dataclasses import replace

from segpipe.confidence.growing import Draws, Growth, evidence_at, loosest_proven
from segpipe.confidence.policy import Policy, sealed
from segpipe.errors import PolicyError


def grown_threshold(root: Policy, draws: Draws) -> float | None:
    """The looser one of calibration's threshold and that which the draws prove; None without either.

    Raises PolicyError when the policy does not grow.
    """
    growth, limit = growing_by(root)
    proven = loosest_proven(draws, to_prove(root), limit, root.tested_confidence, growth.draw_share)
    return root.threshold if proven is None else proven


def to_prove(root: Policy) -> tuple[float, ...]:
    """The thresholds that the draws are to prove, strict to loose: those looser than calibration's.

    Calibration's is proven with its own half of the error, and given the calibration images, which the draws
    do not depend on, the first false one of the others is fixed and proven with at most the other half.
    """
    growth, _ = growing_by(root)
    return tuple(one for one in growth.thresholds if root.threshold is None or one < root.threshold)


def grown_policy(
    root: Policy, draws: Draws, number: int, created_at: str, until: str | None = None
) -> Policy:
    """The calibrated policy `root` as the draws let it grow, with its evidence; number: 1 or more.

    `until` is that of Evidence. All is counted anew from the draws as they are now: what a changed answer
    takes back is taken back. Raises PolicyError as grown_threshold does.
    """
    growth, limit = growing_by(root)
    threshold = grown_threshold(root, draws)
    accepts_from = math.inf if threshold is None else threshold
    evidence = evidence_at(
        draws, accepts_from, limit, root.tested_confidence, growth.draw_share, root.threshold
    )
    grown = replace(growth, root=root.policy_id, number=number, evidence=replace(evidence, until=until))
    return sealed(replace(root, threshold=threshold, growth=grown, created_at=created_at))


def growing_by(root: Policy) -> tuple[Growth, float]:
    """How a calibrated policy grows, and the largest bad share it promises. PolicyError: it does not grow."""
    if root.growth is None or root.promised.target != "bad_fraction":
        raise PolicyError(f"policy {root.policy_id} does not grow: calibrate with --grow")
    return root.growth, root.promised.max_bad_fraction


def has_grown_from(policy: Policy, root: Policy) -> bool:
    """Whether a policy is `root` but for what growth changes."""
    if policy.growth is None or policy.growth.evidence is None:
        return False
    as_root = replace(
        policy,
        policy_id=root.policy_id,
        threshold=policy.growth.evidence.first_threshold,
        growth=replace(policy.growth, root=None, number=0, evidence=None),
        created_at=root.created_at,
    )
    return policy.growth.root == root.policy_id and as_root == root
