"""Every decision about a shard's masks, taken once, when its part is committed: threshold, guards, drift,
suspension, audit.

Drift is tested on the run's first shard, and the verdict lies in the metadata of every part, so that it holds
for the whole run, resumes included, and no part is ever changed. A suspension counts from the next shard on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from segpipe.confidence.audit_draw import is_drawn, is_from_scratch
from segpipe.confidence.drift import Drift, detect_drift, levels_of
from segpipe.confidence.group_drift import detect_group_drift
from segpipe.confidence.policy import check_policy_for_model, for_group, is_guarded
from segpipe.errors import PatternError
from segpipe.manifests.policies import is_suspended, suspended_groups, suspension_uri
from segpipe.name_groups import group_of_address
from segpipe.printable import printable

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.config import LabelSettings
    from segpipe.manifests.schema import Decision, RoutingReason, Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """What decides about a shard's masks.

    audit_share (0 to 1) of the accepted ones people look at all the same; under a policy that may grow it is
    the share of all masks, and at least the policy's own, of which people draw from_scratch_share (0 to 1)
    without the draft. drifted: the run's scores are not like the calibration's; suspended: the policy was
    shown broken; either way nothing is accepted, and of drifted_groups and suspended_groups nothing of these
    groups (see policy.per).
    """

    policy: Policy | None
    audit_share: float
    drifted: bool
    suspended: bool
    drifted_groups: frozenset[str] = frozenset()
    suspended_groups: frozenset[str] = frozenset()
    from_scratch_share: float = 0.0

    @property
    def draw_share(self) -> float:
        """The share (0 to 1) of masks that are drawn whatever their score."""
        growth = self.policy and self.policy.growth
        return max(self.audit_share, growth.draw_share) if growth else self.audit_share


def decide(rows: Iterable[Row], rules: Rules) -> list[Row]:
    """The rows as they are committed; failed ones stay failed. PolicyError for another model's policy."""
    rows = list(rows)
    groups = _groups_of(rows, rules.policy)
    return [_decide(row, group, rules) for row, group in zip(rows, groups, strict=True)]


def _groups_of(rows: Sequence[Row], policy: Policy | None) -> list[str | None]:
    """The group of each image, for a policy with certificates per group; None where it is not known."""
    if policy is None or policy.per is None:
        return [None] * len(rows)
    found = [None if row.decision == "failed" else _group_or_why(row, policy.per) for row in rows]
    if endless := [one for one in found if isinstance(one, PatternError)]:
        logger.warning(
            "the group of %d images is unknown, so they are reviewed: %s", len(endless), endless[0]
        )
    return [None if isinstance(one, PatternError) else one for one in found]


def _group_or_why(row: Row, per: str) -> str | PatternError | None:
    try:
        return group_of_address(row.image_uri, per)
    except PatternError as error:
        return error


def _decide(row: Row, group: str | None, rules: Rules) -> Row:
    if rules.policy is None:
        return row
    row = replace(row, policy_id=rules.policy.policy_id)
    if row.decision == "failed":
        return row
    image, share = (row.image_uri, row.image_etag, row.model_id, rules.policy.family), rules.draw_share
    drawn = is_drawn(*image, share)
    if rules.policy.growth is not None:
        from_scratch = drawn and is_from_scratch(*image, rules.from_scratch_share)
        row = replace(row, drawn=drawn, draw_probability=share, from_scratch=from_scratch)
    decision, reason = _routed(row, for_group(rules.policy, group))
    certified = reason != "uncertified_group"
    if rules.suspended or (certified and group in rules.suspended_groups):
        decision, reason = "review", "suspended"
    elif rules.drifted or (certified and group in rules.drifted_groups):
        decision, reason = "review", "drift"
    if decision == "review":  # a person sees it anyway, so it is no audit
        return replace(row, decision=decision, reason=reason, audit=False, inclusion_probability=1.0)
    return replace(row, decision=decision, reason=reason, audit=drawn, inclusion_probability=share)


def _routed(row: Row, own: Policy | None) -> tuple[Decision, RoutingReason]:
    if own is None:
        return "review", "uncertified_group"
    assert row.class_confidences is not None  # a labelled image has them
    score = math.nan if row.discriminator_score is None else row.discriminator_score
    by_class = [math.nan if value is None else value for value in row.class_confidences]
    return route(score, by_class, own, row.model_id)


def route(
    score: float, class_confidences: Sequence[float], policy: Policy, model_id: str
) -> tuple[Decision, RoutingReason]:
    """Decision and reason for a raw discriminator score; accepted only at or above a certified threshold.

    `class_confidences` (K,) are 0 to 1, NaN for a class not in the mask; a guarded class below its minimum
    sends the mask to review whatever the score. Raises PolicyError for a policy made for another model.
    """
    check_policy_for_model(policy, model_id)
    if is_guarded(policy, class_confidences):
        return "review", "low_confidence"
    if policy.threshold is not None and math.isfinite(score) and score >= policy.threshold:
        return "accepted", "confident"
    return "review", "low_confidence"


def tested_for_drift(
    first_shard: Iterable[Row],
    policy: Policy | None,
    settings: LabelSettings,
    earlier: Sequence[Sequence[tuple[str, float]]],
) -> Drift | None:
    """Test the scores of a run's first shard; None where nothing is accepted, so that nothing is at stake.

    `earlier` are the (image URI, raw score) of the policy's runs before, oldest first. What is drawn for a
    policy that may grow is at stake: it counts where the run has not drifted.
    """
    if policy is None or (policy.threshold is None and policy.growth is None):
        return None
    scores = [row.discriminator_score for row in first_shard if row.discriminator_score is not None]
    levels = levels_of(([score for _, score in run] for run in earlier), policy)
    return detect_drift(scores, policy, settings.drift_false_alarm_rate, levels, settings.drift_deviation)


def groups_tested_for_drift(
    first_shard: Iterable[Row],
    policy: Policy | None,
    settings: LabelSettings,
    earlier: Sequence[Sequence[tuple[str, float]]],
) -> dict[str, Drift]:
    """The same for each group that has a certificate of its own; nothing for a policy without such."""
    if policy is None or policy.per is None:
        return {}
    scores = [
        (row.image_uri, row.discriminator_score) for row in first_shard if row.discriminator_score is not None
    ]
    rate, deviation = settings.drift_false_alarm_rate, settings.drift_deviation
    return detect_group_drift(scores, policy, rate, earlier, deviation)


def groups_drifted(drifts: Mapping[str, Drift], settings: LabelSettings) -> frozenset[str]:
    """The groups whose masks of the run all go to review."""
    return frozenset(group for group, drift in drifts.items() if has_drifted(drift, settings))


def log_group_drift(drifts: Mapping[str, Drift], run_id: str, settings: LabelSettings) -> None:
    """Log the groups with an alarm, what it leads to and what to do about it."""
    for group, drift in drifts.items():
        if drift.alarm:
            logger.warning(
                "drift: the images of group %s in run %s are not like its calibration images: p = %.2g over "
                "%d scores, alarm at %g; %s; look at the images, recalibrate or retrain",
                printable(group),
                run_id,
                drift.p_value,
                drift.n_scores,
                drift.false_alarm_rate,
                "masks are accepted as usual"
                if settings.drift_warn_only
                else "all masks of that group go to review, those of other groups do not",
            )


def has_drifted(drift: Drift | None, settings: LabelSettings) -> bool:
    """Whether all masks of the run go to review."""
    return drift is not None and drift.alarm and not settings.drift_warn_only


def log_drift(drift: Drift | None, run_id: str, settings: LabelSettings) -> None:
    """Log the verdict; with an alarm, what it leads to and what to do about it."""
    if drift is None:
        return
    if drift.p_value is None:
        logger.info("run %s is not tested for drift: %d scores are too few", run_id, drift.n_scores)
    elif drift.alarm:
        logger.warning(
            "drift: the images of run %s are not like the calibration images: p = %.2g over %d scores, alarm "
            "at %g; %s; look at the images, recalibrate or retrain",
            run_id,
            drift.p_value,
            drift.n_scores,
            drift.false_alarm_rate,
            "masks are accepted as usual" if settings.drift_warn_only else "all masks go to review",
        )
    else:
        logger.info("run %s shows no drift: p = %.2g over %d scores", run_id, drift.p_value, drift.n_scores)


def find_suspension(output: str, policy: Policy | None) -> bool:
    """Whether the policy is suspended in OUTPUT; says so in the log, with the remedy. StorageError."""
    if policy is None or not policy.accepts_some or not is_suspended(output, policy.family):
        return False
    logger.warning(
        "policy %s is suspended: the audit has shown that its promise is broken; all masks go to review "
        "until segpipe calibrate, on images like these, makes another; evidence: %s",
        policy.family,
        suspension_uri(output, policy.family),
    )
    return True


def find_suspended_groups(
    output: str, policy: Policy | None, known: frozenset[str] = frozenset()
) -> frozenset[str]:
    """The groups whose own certificate is suspended in OUTPUT; says so in the log of those not yet known.

    StorageError.
    """
    groups = frozenset() if policy is None else suspended_groups(output, policy)
    for group in groups - known:
        logger.warning(
            "the certificate of group %s is suspended: the audit has shown that its promise is broken; all "
            "masks of that group go to review, those of other groups do not, until segpipe calibrate makes "
            "another policy; evidence: %s",
            printable(group),
            suspension_uri(output, policy.family if policy else "", group),
        )
    return groups
