"""Does the promise hold? Verdicts on a random share of the accepted masks, and what follows from them.

Which masks are audited labeling/routing.py draws by a digest of what they are about: the same in every run,
and not to be steered by score or look. A promise that is shown broken is suspended for the OUTPUT: labelling
under its policy sends to review what it would have accepted, until the model is calibrated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.confidence.policy import BadFractionPromise, promise
from segpipe.confidence.sequential import confidence_sequence, evidence_of_a_break
from segpipe.manifests.query import query
from segpipe.manifests.suspensions import suspend

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy

# Reviewers do not know which masks are audits, so the order of the verdicts says nothing of them.
_AUDITED = """
    SELECT r.verdict, r.draft_iou
    FROM labels l LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
        = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
    WHERE l.audit AND l.decision = 'accepted' AND l.policy_id = '{policy_id}'
    ORDER BY r.reviewed_at NULLS LAST, r.review_id"""


@dataclass(frozen=True)
class AuditResult:
    """What the audits of one policy say.

    audited: drawn masks; decided: those with a verdict, of which bad broke the target; mean_loss with low and
    high: the share of bad masks (or the mean loss) and its interval at `confidence`, for all times at once;
    evidence: against the promise, broken once it has ever reached 1 / false_alarm_rate.
    """

    policy_id: str
    promise: str
    promised: float
    audited: int
    decided: int
    skipped: int
    bad: int | None
    mean_loss: float | None
    low: float
    high: float
    confidence: float
    evidence: float
    false_alarm_rate: float
    broken: bool


def audit(output: str, policy: Policy, false_alarm_rate: float) -> AuditResult:
    """Weigh the verdicts; suspends the policy for OUTPUT when its promise is broken.

    Raises NotFoundError for no OUTPUT, StorageError.
    """
    output = storage.normalise(output)
    rows = query(output, _AUDITED.format(policy_id=policy.policy_id)).to_pylist()
    verdicts = [(row["verdict"], row["draft_iou"]) for row in rows if row["verdict"] is not None]
    result = weigh(verdicts, len(rows), policy, false_alarm_rate)
    if result.broken:
        _suspend(output, result)
    return result


def weigh(
    verdicts: Sequence[tuple[str, float | None]], n_audited: int, policy: Policy, false_alarm_rate: float
) -> AuditResult:
    """What verdicts with their draft's IoU, in the order they were given, say of a policy's promise."""
    losses = [_loss(verdict, iou, policy) for verdict, iou in verdicts if verdict != "skipped"]
    promised = _promised(policy)
    interval = confidence_sequence(losses, policy.confidence)
    evidence = float(evidence_of_a_break(losses, promised).max(initial=0.0))
    counts_bad = isinstance(policy.promised, BadFractionPromise)
    return AuditResult(
        policy_id=policy.policy_id,
        promise=promise(policy),
        promised=promised,
        audited=n_audited,
        decided=len(losses),
        skipped=len(verdicts) - len(losses),
        bad=round(sum(losses)) if counts_bad else None,
        mean_loss=sum(losses) / len(losses) if losses else None,
        low=interval.low,
        high=interval.high,
        confidence=policy.confidence,
        evidence=evidence,
        false_alarm_rate=false_alarm_rate,
        broken=evidence >= 1 / false_alarm_rate,
    )


def in_words(result: AuditResult) -> str:
    """What to make of it."""
    if result.broken:
        return (
            "BROKEN: the accepted masks are worse than promised; the policy is suspended here, what it would "
            "accept goes to review; look at the bad ones, then calibrate again or retrain"
        )
    if result.high <= result.promised:
        return "kept: even the upper end of the interval is within the promise"
    return "not shown broken; more verdicts narrow the interval"


def _suspend(output: str, result: AuditResult) -> None:
    suspended_at = datetime.now(UTC).isoformat(timespec="seconds")
    suspend(output, result.policy_id, asdict(result) | {"suspended_at": suspended_at})


def _promised(policy: Policy) -> float:
    made = policy.promised
    return made.max_bad_fraction if isinstance(made, BadFractionPromise) else made.max_mean_loss


def _loss(verdict: str, draft_iou: float | None, policy: Policy) -> float:
    """A rejected mask lost all; else what the corrected one shows of the draft."""
    iou = 0.0 if verdict == "rejected" or draft_iou is None else draft_iou
    if isinstance(policy.promised, BadFractionPromise):
        return float(iou < policy.promised.min_iou)
    return 1 - iou
