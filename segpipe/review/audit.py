"""Is the promise kept? What people said about audited masks, against what their policy promised.

Audits count in the order in which the masks were labelled and drawn, up to the oldest without an answer. So
the order is fixed before anyone looks: in the order of the answers a queue that shows doubtful masks first
would look like a broken promise. A mask that a person skipped, or that left the queue because its image
changed or another model took over, has no answer and holds nothing back.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby, takewhile
from statistics import fmean
from typing import Any, Literal

import numpy as np

from segpipe import storage
from segpipe.confidence.confidence_sequence import losses_until_below, mean_interval, p_values_above
from segpipe.confidence.policy import BadFractionPromise, ClassesOnly, MaskPromise, MeanLossPromise, Policy
from segpipe.confidence.promise import promise
from segpipe.errors import PolicyError
from segpipe.manifests import policies
from segpipe.manifests.views import open_views
from segpipe.metrics import IouRule

logger = logging.getLogger(__name__)

State = Literal["kept", "undecided", "broken"]

_AUDITS = """
    SELECT l.policy_id, l.labeled_at, l.image_uri, r.verdict, r.draft_iou,
        r.draft_iou_graded,
        EXISTS (FROM latest t WHERE (t.image_uri, t.image_etag, t.model_id)
            = (l.image_uri, l.image_etag, l.model_id)) AS in_queue
    FROM labels l
    LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
        = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
    WHERE l.decision = 'accepted' AND l.audit AND l.policy_id IS NOT NULL
    ORDER BY l.policy_id, l.labeled_at, l.image_uri"""
_ACCEPTED = """
    SELECT policy_id, count(*) AS accepted FROM labels
    WHERE decision = 'accepted' AND policy_id IS NOT NULL GROUP BY policy_id"""
_NEWEST = """
    SELECT policy_id FROM labels WHERE $model_id IS NULL OR model_id = $model_id
    ORDER BY labeled_at DESC, run_id DESC, shard DESC LIMIT 1"""


@dataclass(frozen=True)
class Audit:
    """One mask drawn for the audit; loss (0 to 1) is None without an answer, decided: somebody was asked."""

    labeled_at: datetime
    image_uri: str
    loss: float | None
    decided: bool
    in_queue: bool

    @property
    def is_open(self) -> bool:
        """Whether an answer is still to come."""
        return not self.decided and self.in_queue


@dataclass(frozen=True)
class PolicyAudit:
    """What the audits say about one policy's promise in one OUTPUT.

    `limit` is the promised largest share of bad masks, or mean loss (`target` says which; 0 to 1), among the
    `accepted` masks, `confidence` the policy's. Of the `drawn` ones `audited` are answered and count, `bad`
    of them (None for a mean loss); `held_back` are answered but behind the oldest of the `open` ones;
    `skipped` and `withdrawn` (the image changed, or another model took over) have no answer.

    `estimate` is their bad share or mean loss; `lower` to `upper` its confidence sequence: it holds at every
    moment at once; `p_value` is that of the promise being kept all the time, valid whenever it is looked at.
    `more_needed`: so many more audits like these would show the promise kept; None: no number would.
    `by_month` counts audits and their estimate by the month the masks were labelled in. `in_use`: the newest
    mask was labelled under this policy.
    """

    policy_id: str
    model_id: str
    promise: str
    target: Literal["bad_fraction", "mean_loss", "classes"]
    limit: float
    confidence: float
    state: State
    suspended: bool
    in_use: bool
    accepted: int
    drawn: int
    audited: int
    bad: int | None
    estimate: float | None
    lower: float
    upper: float
    p_value: float
    more_needed: int | None
    open: int
    held_back: int
    skipped: int
    withdrawn: int
    oldest_open: str | None
    by_month: dict[str, dict[str, float]]


def audit_output(output: str, model_id: str | None = None) -> list[PolicyAudit]:
    """What the audits say about each policy that has labelled into OUTPUT, oldest first; writes nothing.

    Only of one model when `model_id` is given. Raises NotFoundError when OUTPUT does not exist, PolicyError
    when the policy of audited masks is missing or damaged there, StorageError.
    """
    output = storage.normalise(output)
    audits, accepted, newest = _read(output, model_id)
    kept = policies.kept_policies(output)
    _require_kept(audits, kept, output)
    found = [policies.parse_kept(output, name, text) for name, text in kept.items()]
    return [
        _audited(
            policy,
            [_as_audit(row, policy) for row in audits.get(policy.policy_id, [])],
            accepted=accepted.get(policy.policy_id, 0),
            suspended=policies.is_suspended(output, policy.policy_id),
            in_use=policy.policy_id == newest,
        )
        for policy in sorted(found, key=lambda policy: policy.created_at)
        if model_id in (None, policy.model_id)
    ]


def suspend_broken(output: str, audits: Iterable[PolicyAudit]) -> list[PolicyAudit]:
    """Suspend each policy whose promise is shown broken, with the evidence; gives those newly suspended.

    StorageError.
    """
    output = storage.normalise(output)
    broken = [audit for audit in audits if audit.state == "broken" and not audit.suspended]
    return [audit for audit in broken if policies.suspend(output, audit.policy_id, _evidence(audit))]


def in_words(audit: PolicyAudit) -> str:
    """The verdict on a policy's promise, and what to do."""
    if audit.suspended or audit.state == "broken":
        return (
            f"BROKEN: {_found(audit)}, promised were at most {audit.limit:.3g}; under this policy all masks "
            "go to review: look at the masks found bad, then calibrate on images like these, or retrain"
        )
    if audit.target == "classes":
        return "not covered: what is promised is about classes, and the audit only sees what masks lose"
    if not audit.drawn:
        return "not watched: no accepted mask was drawn for the audit (see --audit-share of segpipe label)"
    if audit.state == "kept":
        return f"promise holds so far: {_found(audit)}"
    if audit.more_needed is None:
        return f"not yet known, and the audits look no better than promised: {_found(audit)}"
    return f"not yet enough audits: {_found(audit)}; {audit.more_needed} more like these would show it kept"


def waiting_in_words(audit: PolicyAudit) -> str | None:
    """Which answers are missing; None when none is."""
    if not audit.open:
        return None
    held_back = f", {audit.held_back} answered ones wait behind the oldest" if audit.held_back else ""
    return f"{audit.open} audits to answer{held_back}: {audit.oldest_open} is next (answer or skip it)"


def _found(audit: PolicyAudit) -> str:
    what = "bad share" if audit.target == "bad_fraction" else "mean loss"
    if audit.estimate is None:
        return f"{what} unknown, no audit is answered"
    counted = f"{audit.bad} bad of {audit.audited}" if audit.bad is not None else f"{audit.audited} audits"
    return f"{what} {audit.estimate:.3g} ({counted}), between {audit.lower:.3g} and {audit.upper:.3g}"


def _read(
    output: str, model_id: str | None
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int], str | None]:
    """The audited rows and the number of accepted ones by policy id, and the policy last used."""
    with open_views(output) as connection:
        rows = connection.sql(_AUDITS).to_arrow_table().to_pylist()
        accepted = connection.sql(_ACCEPTED).fetchall()
        newest = connection.execute(_NEWEST, {"model_id": model_id}).fetchone()
    grouped = groupby(rows, key=lambda row: row["policy_id"])
    by_policy = {str(policy_id): list(group) for policy_id, group in grouped}
    return by_policy, dict(accepted), newest[0] if newest else None


def _require_kept(audits: Iterable[str], kept: Iterable[str], output: str) -> None:
    if missing := sorted(set(audits) - set(kept)):
        raise PolicyError(
            f"{policies.kept_uri(output, missing[0])} is missing, so what was promised "
            "about the audited masks is unknown: put the policy.json of that calibration there"
        )


def _as_audit(row: dict[str, Any], policy: Policy) -> Audit:
    return Audit(
        labeled_at=row["labeled_at"],
        image_uri=row["image_uri"],
        loss=_loss(row["verdict"], _draft_iou(row, policy.rule), policy.promised),
        decided=row["verdict"] is not None,
        in_queue=row["in_queue"],
    )


def _draft_iou(row: dict[str, Any], rule: IouRule) -> float | None:
    """By the policy's rule. A decision of a version without the graded one has the other, which is never
    higher and so flatters no promise."""
    graded: float | None = row["draft_iou_graded"] if rule == "graded" else None
    every_class: float | None = row["draft_iou"]
    return every_class if graded is None else graded


def _loss(verdict: str | None, draft_iou: float | None, promised: MaskPromise) -> float | None:
    """What a mask loses by the policy's own measure, 0 to 1; None when nobody has said what is right."""
    iou = {"accepted": 1.0, "corrected": draft_iou, "rejected": 0.0}.get(str(verdict))
    if iou is None or not 0 <= iou <= 1:
        return None
    return float(iou < promised.min_iou) if isinstance(promised, BadFractionPromise) else 1 - iou


def _audited(
    policy: Policy, audits: list[Audit], *, accepted: int, suspended: bool, in_use: bool
) -> PolicyAudit:
    reached = list(takewhile(lambda audit: not audit.is_open, audits))
    counted = list(_answered(reached))
    losses = np.array([loss for _, loss in counted])
    limit, is_bad_fraction = _limit(policy.promised)
    lower, upper = mean_interval(losses, policy.confidence)
    oldest_open = next((audit.image_uri for audit in audits if audit.is_open), None)
    return PolicyAudit(
        policy_id=policy.policy_id,
        model_id=policy.model_id,
        promise=promise(policy),
        target=policy.promised.target,
        limit=limit,
        confidence=policy.confidence,
        # A limit of 1 is no promise that could be kept.
        state="broken" if lower > limit else "kept" if upper <= limit < 1 else "undecided",
        suspended=suspended,
        in_use=in_use,
        accepted=accepted,
        drawn=len(audits),
        audited=len(losses),
        bad=int(losses.sum()) if is_bad_fraction else None,
        estimate=float(losses.mean()) if losses.size else None,
        lower=lower,
        upper=upper,
        p_value=float(p_values_above(losses, limit).min(initial=1.0)),
        more_needed=losses_until_below(losses, limit, policy.confidence),
        open=sum(audit.is_open for audit in audits),
        held_back=sum(1 for _ in _answered(audits)) - len(counted),
        skipped=sum(audit.loss is None and audit.decided for audit in audits),
        withdrawn=sum(not audit.decided and not audit.in_queue for audit in audits),
        oldest_open=oldest_open,
        by_month=_by_month(counted),
    )


def _limit(promised: MaskPromise) -> tuple[float, bool]:
    """The promised limit, and whether it is one of bad masks; any loss is allowed where masks have none."""
    match promised:
        case BadFractionPromise():
            return promised.max_bad_fraction, True
        case MeanLossPromise():
            return promised.max_mean_loss, False
        case ClassesOnly():
            return 1.0, False


def _answered(audits: Iterable[Audit]) -> Iterator[tuple[datetime, float]]:
    return ((audit.labeled_at, audit.loss) for audit in audits if audit.loss is not None)


def _by_month(counted: list[tuple[datetime, float]]) -> dict[str, dict[str, float]]:
    months: defaultdict[str, list[float]] = defaultdict(list)
    for labeled_at, loss in counted:
        months[f"{labeled_at.astimezone(UTC):%Y-%m}"].append(loss)
    return {month: {"audited": len(losses), "estimate": fmean(losses)} for month, losses in months.items()}


def _evidence(audit: PolicyAudit) -> str:
    found = {"suspended_at": datetime.now(UTC).isoformat(), "reason": in_words(audit), **asdict(audit)}
    return json.dumps(found, indent=2, ensure_ascii=False)
