"""`segpipe recalibrate`: what people said about masks drawn blind to the score, and the policy that follows.

Draws count in the order in which the masks were labelled, up to the oldest one that is still open, as audits
do (see audit). All of them are counted anew each time, by the answers that hold now: a late answer takes its
place in that order, and a changed one takes back what it had proven. Nothing but OUTPUT is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.confidence.growing import Draws, Evidence, bad_ratio, capital_needed, evidence_at
from segpipe.confidence.grown_policy import growing_by, grown_policy, to_prove
from segpipe.confidence.policy import Policy, holds_back
from segpipe.confidence.promise import promise
from segpipe.errors import NotFoundError, SegpipeError
from segpipe.manifests import policies
from segpipe.manifests.drawn import counted_draws
from segpipe.manifests.parts import require_output
from segpipe.manifests.views import open_views
from segpipe.redaction import redact
from segpipe.review.audited_masks import draft_iou_by, loss_of
from segpipe.review.policy_runs import damaged_policies, newest_roots, newest_runs

_DRAWS = """
    SELECT l.policy_id, l.image_uri, l.labeled_at, l.discriminator_score, l.class_confidences,
        l.draw_probability, r.verdict, r.draft_iou, r.draft_iou_graded,
        coalesce(r.from_scratch, false) AS from_scratch,
        EXISTS (FROM latest t WHERE (t.image_uri, t.image_etag, t.model_id)
            = (l.image_uri, l.image_etag, l.model_id)) AS in_queue
    FROM $counted l
    LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
        = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
    WHERE list_contains($family, l.policy_id)
    ORDER BY l.labeled_at, l.image_uri, l.image_etag, l.run_id, l.shard""".replace(
    "$counted", counted_draws("labels")
)


@dataclass(frozen=True)
class Recalibration:
    """What one family of policies has come to.

    `policy_id` is the newest policy of the family `root`, its `number`-th (0: calibration's own), `promise`
    what it promises and `written` whether it is new; `threshold_before` was that of the one before (null: it
    accepts nothing). Of the masks that were `drawn` the answers of `counted`
    count; `open` ones are still to be answered, the `oldest_open` first, and `held_back` answers wait behind
    it; `skipped` of the counted were passed over and count as bad; `withdrawn`: the image changed, or another
    model took over.

    `next_threshold` is the strictest one that the draws have not proven (null: there is none), `capital` what
    betting on it has reached of the `needed`, and `capital_unskipped` what it would have if nobody had asked
    for the skipped ones. `ratio` (`ratio_lower` to `ratio_upper`)
    is how many times as often the reviewers find a mask bad that they draw from scratch as one whose draft
    they mend, among those that the policy accepts; where it is surely above 1 it `ratio_applies`: their
    answers with a draft are held against a limit smaller by its upper end. Infinite and unknown are null.
    """

    root: str
    model_id: str
    policy_id: str
    number: int
    promise: str
    written: bool
    threshold_before: float | None
    threshold: float | None
    drawn: int
    counted: int
    open: int
    held_back: int
    skipped: int
    withdrawn: int
    oldest_open: str | None
    next_threshold: float | None
    capital: float | None
    capital_unskipped: float | None
    needed: float
    ratio: float | None
    ratio_lower: float | None
    ratio_upper: float | None
    ratio_applies: bool


@dataclass(frozen=True)
class Recalibrated:
    """What each family of policies has come to, and a line about each that is suspended or could not grow."""

    found: list[Recalibration]
    suspended: list[str]
    failed: list[str]


@dataclass(frozen=True)
class _Draw:
    """One drawn mask; bad is None without an answer, decided: somebody was asked."""

    image_uri: str
    labeled_at: datetime
    score: float
    share: float
    bad: bool | None
    decided: bool
    from_scratch: bool
    in_queue: bool

    @property
    def is_open(self) -> bool:
        return not self.decided and self.in_queue


def in_words(found: Recalibration) -> str:
    """What has become of the policy."""
    if not found.written:
        return f"nothing new is proven, and nothing was written: {_threshold(found.threshold)}"
    way = "looser" if _accepts_from(found.threshold) < _accepts_from(found.threshold_before) else "STRICTER"
    stricter = ", because answers were changed or are gone (segpipe verify), or the ratio now applies"
    why = "" if way == "looser" else stricter
    return (
        f"number {found.number} is written, {way}{why}: {_threshold(found.threshold)}, "
        f"before {_threshold(found.threshold_before)}"
    )


def ratio_in_words(found: Recalibration) -> str:
    """How much worse masks are found from scratch than with the draft."""
    if found.ratio_lower is None:
        return "unknown: it takes a bad mask and answers of both kinds"
    estimate = "infinity" if found.ratio is None else f"{found.ratio:.2f}"
    upper = "infinity" if found.ratio_upper is None else f"{found.ratio_upper:.2f}"
    applied = (
        "surely above 1, so answers with a draft are held against a limit as many times smaller as it may be"
        if found.ratio_applies
        else "not surely above 1, so not applied"
    )
    between = f"{estimate}, between {found.ratio_lower:.2f} and {upper}"
    return f"{between} (bad share from scratch over that with a draft); {applied}"


def _threshold(threshold: float | None) -> str:
    return "accepts nothing" if threshold is None else f"accepts from score {threshold:.6g}"


def _accepts_from(threshold: float | None) -> float:
    return math.inf if threshold is None else threshold


def recalibrate(output: str, model_id: str | None = None) -> Recalibrated:
    """Write the next policy of each model that grows under OUTPUT, where the answers change its threshold.

    Only of one model when `model_id` is given; of a model that was calibrated several times only the family
    of its newest run. A suspended one is left as it is, and one with a policy that cannot be read; neither
    stops another model's. Raises NotFoundError (nothing is labelled there, or no policy grows), StorageError.
    """
    output = storage.normalise(output)
    require_output(output)
    kept, runs = policies.kept_policies(output), newest_runs(output)
    damaged = [one for one in damaged_policies(kept, runs) if model_id in (None, one.model_id)]
    stopped = {one.model_id for one in damaged}
    roots = [one for one in newest_roots(kept, runs) if one.growth and model_id in (None, one.model_id)]
    if not roots and not damaged:
        which = "" if model_id is None else f" of model {model_id}"
        raise NotFoundError(
            f"no policy{which} that has labelled into {redact(output)} grows: calibrate with --grow"
        )
    grown = [_grown_or_why(output, root) for root in roots if root.model_id not in stopped]
    return Recalibrated(
        [one for one in grown if isinstance(one, Recalibration)],
        [_grows_no_more(one) for one in grown if isinstance(one, Policy)],
        [
            *(_cannot_grow(one.model_id, one.why) for one in damaged),
            *(one for one in grown if isinstance(one, str)),
        ],
    )


def _grown_or_why(output: str, root: Policy) -> Recalibration | Policy | str:
    """What has become of it; the policy itself where it is suspended, and why it cannot grow."""
    if policies.is_suspended(output, root.policy_id):
        return root
    try:
        return _recalibrated(output, root)
    except policies.UNREADABLE as error:
        return _cannot_grow(root.model_id, error)


def _cannot_grow(model_id: str | None, error: SegpipeError) -> str:
    return str(error) if model_id is None else f"the policy of model {model_id} cannot grow: {error}"


def _grows_no_more(root: Policy) -> str:
    return (
        f"policy {root.policy_id} of model {root.model_id} is suspended: the audit has shown its promise "
        "broken, so it grows no more; look at the masks found bad, then run segpipe calibrate on images like "
        "these"
    )


def _recalibrated(output: str, root: Policy) -> Recalibration:
    while True:
        numbers = policies.grown_numbers(output, root.policy_id)
        before = policies.read_grown(output, root, numbers[-1]) if numbers else root
        found = _read(output, root, numbers)
        counted = _counted(found)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        after = grown_policy(root, counted, (numbers[-1] if numbers else 0) + 1, now, _until(found))
        if after.threshold == before.threshold:
            return _told(root, before, before, found, counted)
        if policies.create_grown(output, after):
            return _told(root, before, after, found, counted)
        # another recalibration was quicker: look at what it has written


def _read(output: str, root: Policy, numbers: Sequence[int]) -> list[_Draw]:
    family = [root, *(policies.read_grown(output, root, number) for number in numbers)]
    parameters = {"family": [one.policy_id for one in family]}
    with open_views(output) as connection:
        rows = connection.sql(_DRAWS, params=parameters).to_arrow_table().to_pylist()
    return [_as_draw(row, root) for row in rows]


def _as_draw(row: dict[str, Any], policy: Policy) -> _Draw:
    loss = loss_of(row["verdict"], draft_iou_by(row, policy.rule), policy.promised)
    return _Draw(
        image_uri=row["image_uri"],
        labeled_at=row["labeled_at"],
        score=_acceptable_score(row, policy),
        share=row["draw_probability"],
        bad=None if loss is None else loss > 0,
        decided=row["verdict"] is not None,
        from_scratch=row["from_scratch"],
        in_queue=row["in_queue"],
    )


def _acceptable_score(row: dict[str, Any], policy: Policy) -> float:
    """The score; -inf where no threshold accepts the mask, as calibration has it."""
    score = row["discriminator_score"]
    by_class = [math.nan if one is None else one for one in row["class_confidences"] or ()]
    held_back = score is None or not math.isfinite(score) or holds_back(policy.guards, by_class)
    return -math.inf if held_back else score


def _reached(found: Sequence[_Draw]) -> list[_Draw]:
    """What somebody was asked about, up to the oldest open one."""
    return [one for one in takewhile(lambda one: not one.is_open, found) if one.decided]


def _until(found: Sequence[_Draw]) -> str | None:
    reached = _reached(found)
    return reached[-1].labeled_at.astimezone(UTC).isoformat() if reached else None


def _counted(found: Sequence[_Draw]) -> Draws:
    reached = _reached(found)
    return Draws(
        scores=np.array([one.score for one in reached], np.float64),
        bad=np.array([one.bad is not False for one in reached], np.bool_),
        shares=np.array([one.share for one in reached], np.float64),
        from_scratch=np.array([one.from_scratch for one in reached], np.bool_),
        skipped=np.array([one.bad is None for one in reached], np.bool_),
    )


def _told(
    root: Policy, before: Policy, policy: Policy, found: Sequence[_Draw], counted: Draws
) -> Recalibration:
    reached = _reached(found)
    evidence = _evidence(root, counted, _accepts_from(policy.threshold))
    ratio = bad_ratio(
        evidence.bad_from_scratch, evidence.answered_from_scratch,
        evidence.bad_with_draft, evidence.answered_with_draft, root.tested_confidence,
    )  # fmt: skip
    following = _next_threshold(root, counted)
    return Recalibration(
        root=root.policy_id,
        model_id=root.model_id,
        policy_id=policy.policy_id,
        number=growing_by(policy)[0].number,
        promise=promise(policy),
        written=policy != before,
        threshold_before=before.threshold,
        threshold=policy.threshold,
        drawn=len(found),
        counted=len(reached),
        open=sum(one.is_open for one in found),
        held_back=sum(one.decided for one in found) - len(reached),
        skipped=sum(one.bad is None for one in reached),
        withdrawn=sum(not one.decided and not one.in_queue for one in found),
        oldest_open=next((one.image_uri for one in found if one.is_open), None),
        next_threshold=following,
        capital=None if following is None else _capital(_evidence(root, counted, following)),
        capital_unskipped=None
        if following is None
        else _capital(_evidence(root, _unskipped(counted), following)),
        needed=math.exp(capital_needed(root.tested_confidence)),
        ratio=evidence.ratio,
        ratio_lower=None if ratio.estimate is None else ratio.lower,
        ratio_upper=ratio.upper if math.isfinite(ratio.upper) else None,
        ratio_applies=ratio.is_surely_above_one,
    )


def _evidence(root: Policy, counted: Draws, threshold: float) -> Evidence:
    growth, limit = growing_by(root)
    return evidence_at(counted, threshold, limit, root.tested_confidence, growth.draw_share)


def _unskipped(counted: Draws) -> Draws:
    answered = ~counted.skipped
    return Draws(**{name: values[answered] for name, values in vars(counted).items()})


def _capital(evidence: Evidence) -> float:
    return math.exp(evidence.log_capital)


def _next_threshold(root: Policy, counted: Draws) -> float | None:
    """The strictest threshold that is not proven; None once all are."""
    needed = capital_needed(root.tested_confidence)
    return next((one for one in to_prove(root) if _evidence(root, counted, one).log_capital < needed), None)
