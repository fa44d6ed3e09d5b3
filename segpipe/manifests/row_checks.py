"""Whether a manifest row can be what labelling has decided: its decision against reason, score and policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from segpipe.confidence.audit_draw import is_drawn
from segpipe.confidence.policy import Policy, display_confidence, for_group, holds_back
from segpipe.errors import FailureReason
from segpipe.name_groups import group_if_known, group_of_address

CHECKED_COLUMNS = (
    "image_uri",
    "image_etag",
    "mask_uri",
    "mask_sha256",
    "decision",
    "reason",
    "confidence",
    "discriminator_score",
    "class_confidences",
    "audit",
    "inclusion_probability",
    "model_id",
    "policy_id",
    "run_id",
    "shard",
    "error",
    "drawn",
    "draw_probability",
    "from_scratch",
)
REASONS: Mapping[str, frozenset[str]] = {
    "accepted": frozenset({"confident"}),
    "review": frozenset({"low_confidence", "no_policy", "uncertified_group", "drift", "suspended"}),
    "failed": frozenset(get_args(FailureReason)),
}
CONFIDENCE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Grounds:
    """What a part's rows were decided on: the kept policies by id, which of them are suspended, and what the
    part itself says of drift: whether all of its run's images had drifted, and which groups of them.

    suspended_groups are pairs of a policy's id and a group whose own certificate is suspended."""

    policies: Mapping[str, Policy]
    suspended: frozenset[str]
    drifted: bool
    drifted_groups: frozenset[str] = frozenset()
    suspended_groups: frozenset[tuple[str, str | None]] = frozenset()


def row_problems(row: Mapping[str, Any], grounds: Grounds) -> Iterator[str]:
    """What about a row (CHECKED_COLUMNS) no labelling run writes, a phrase each."""
    decision, reason = row["decision"], row["reason"]
    if reason not in REASONS.get(decision, frozenset()):
        yield f"decision {decision} for the reason {reason}"
    elif decision == "failed":
        yield from _failed(row)
    elif row["policy_id"] is None:
        yield from _mask(row)
        if reason != "no_policy":
            yield f"{decision}, {reason} without a policy"
    else:
        yield from _mask(row)
        if (policy := grounds.policies.get(row["policy_id"])) is not None:
            yield from _decided(row, policy, grounds)


def _failed(row: Mapping[str, Any]) -> Iterator[str]:
    if not row["mask_uri"] is row["mask_sha256"] is row["confidence"] is row["discriminator_score"] is None:
        yield "failed, but with a mask or a score"
    if not row["error"]:
        yield "failed, but without an error"
    if row["audit"]:
        yield "failed, but audited"


def _mask(row: Mapping[str, Any]) -> Iterator[str]:
    if not (row["mask_uri"] and row["mask_sha256"]):
        yield f"{row['decision']}, but without a mask"
    if row["error"] is not None:
        yield f"{row['decision']}, but with an error"


def _decided(row: Mapping[str, Any], policy: Policy, grounds: Grounds) -> Iterator[str]:
    if row["model_id"] != policy.model_id:
        yield f"of model {row['model_id']} under a policy of model {policy.model_id}"
        return
    score = math.nan if row["discriminator_score"] is None else row["discriminator_score"]
    group = None if policy.per is None else group_if_known(group_of_address, row["image_uri"], policy.per)
    if (own := for_group(policy, group)) is None:
        is_suspended = row["reason"] == "suspended" and policy.family in grounds.suspended
        if row["reason"] != "uncertified_group" and not is_suspended:
            yield f"{row['reason']}, but its group of images has no certificate"
    else:
        yield from _reason(row, score, own)
        yield from _withheld(row, policy, group, grounds)
    yield from _audit(row, policy)
    yield from _draw(row, policy)
    shown = display_confidence(policy, score)
    if row["confidence"] is None or not math.isclose(row["confidence"], shown, abs_tol=CONFIDENCE_TOLERANCE):
        yield f"confidence {row['confidence']}, the policy shows {shown:.6g} for this score"


def _reason(row: Mapping[str, Any], score: float, policy: Policy) -> Iterator[str]:
    against = _against_accepting(score, row["class_confidences"], policy)
    match row["reason"]:
        case "confident" if against:
            yield f"accepted, but {against}"
        case "low_confidence" if not against:
            yield f"low_confidence, but score {score:.6g} reaches the threshold and no guard holds it back"
        case "no_policy":
            yield f"no_policy, but policy_id {policy.policy_id}"
        case "uncertified_group":
            yield "uncertified_group, but there is a certificate for it"


def _withheld(row: Mapping[str, Any], policy: Policy, group: str | None, grounds: Grounds) -> Iterator[str]:
    """Of what was not accepted whatever its score: whether that was so of all images, or of its group."""
    match row["reason"]:
        case "drift" if not (grounds.drifted or group in grounds.drifted_groups):
            yield "drift, but its part tells of no alarm"
        case "suspended" if not (
            policy.policy_id in grounds.suspended or (policy.policy_id, group) in grounds.suspended_groups
        ):
            yield "suspended, but the policy is not"


def _against_accepting(
    score: float, class_confidences: Sequence[float | None] | None, policy: Policy
) -> str | None:
    if policy.threshold is None:
        return "the policy has no threshold"
    if not (math.isfinite(score) and score >= policy.threshold):
        return f"score {score:.6g} is below the threshold {policy.threshold:.6g}"
    by_class = [math.nan if value is None else value for value in class_confidences or ()]
    if policy.guards and len(by_class) <= max(guard.class_index for guard in policy.guards):
        return "class confidences that the guards need are not there"
    return "a guard holds it back" if holds_back(policy.guards, by_class) else None


def _audit(row: Mapping[str, Any], policy: Policy) -> Iterator[str]:
    share = row["inclusion_probability"]
    if row["decision"] == "review":
        if row["audit"] or share != 1:
            yield f"in review, but audit {row['audit']} and inclusion_probability {share}"
    elif row["audit"] != is_drawn(*_image(row), policy.family, share or 0.0):
        yield f"audit {row['audit']}, but its draw at {share} says otherwise"


def _draw(row: Mapping[str, Any], policy: Policy) -> Iterator[str]:
    drawn, share = row["drawn"], row["draw_probability"]
    if policy.growth is None:
        if not drawn is share is row["from_scratch"] is None:
            yield f"drawn {drawn}, but its policy does not grow"
        return
    if share is None or share < policy.growth.draw_share:
        yield f"draw_probability {share} is less than the policy's {policy.growth.draw_share}"
    if drawn != is_drawn(*_image(row), policy.family, share or 0.0):
        yield f"drawn {drawn}, but its draw at {share} says otherwise"
    if row["from_scratch"] and not drawn:
        yield "from_scratch, but not drawn"
    if row["decision"] == "accepted" and (row["audit"], row["inclusion_probability"]) != (drawn, share):
        yield f"audit {row['audit']} at {row['inclusion_probability']}, but drawn {drawn} at {share}"


def _image(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["image_uri"], row["image_etag"], row["model_id"]
