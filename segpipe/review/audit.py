"""Is the promise kept? What people said about audited masks, against what their policy promised."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from segpipe import storage
from segpipe.confidence.confidence_sequence import lower_end, p_values_above
from segpipe.confidence.policy import BadFractionPromise, ClassesOnly, MaskPromise, MeanLossPromise, Policy
from segpipe.confidence.promise import promise
from segpipe.confidence.sampled_mean import sampled_mean
from segpipe.errors import SegpipeError
from segpipe.manifests import policies
from segpipe.review import audit_nights
from segpipe.review.audit_groups import counts_groups
from segpipe.review.audit_nights import Night, Window, strata_of
from segpipe.review.audit_words import in_words
from segpipe.review.audited_masks import AuditedMasks, Found, cutoff_of, reached, read_audited
from segpipe.review.class_audit import ClassAnswers, ClassAudit, audited_class, class_nights, not_covered
from segpipe.review.policy_runs import Unread, damaged_policies, newest_runs

State = Literal["kept", "undecided", "broken"]


@dataclass(frozen=True)
class PolicyAudit:
    """What the audits say about one policy's promise in one OUTPUT.

    `limit` is the promised largest share of bad masks, or mean loss (`target` says which; 0 to 1), among the
    `accepted` masks, `confidence` the policy's. Of the `drawn` ones `audited` are answered and count, `bad`
    of them (None for a mean loss); `held_back` are answered but behind the oldest of the `open` ones;
    `skipped` and `withdrawn` (the image changed, or another model took over) have no answer. `unwatched` of
    the accepted ones could not be drawn, their run's audit share being 0: nothing here speaks of them.

    `estimate` is the bad share or mean loss of all accepted masks, each counting once however likely it was
    to be drawn. On some of the `nights` the share surely was above `lower`; of all masks accepted so far it
    is at most `upper`, or `upper_with_skips` if all skipped ones are bad. `p_value` is that of the promise
    being kept all the time, valid whenever it is looked at. `more_needed`: so many more audits like the last
    would show the promise kept; None: no number would (`no_better`), or none can be told, as masks had unlike
    chances to be drawn or weigh by their groups. `by_month` counts audits and their estimate by the
    month the masks were labelled in. `in_use`: the newest mask was labelled under this policy.

    `recent` are the last nights; `kept_over` those that show the promise kept (None unless state is kept),
    `last_kept` the last date on which it was shown so. `got_worse`: it was shown kept once, and the last
    nights surely are worse than those that showed it. `masks_a_night` is the median of the accepted masks of
    a night, `night_above` the probability (0 to 1) that so many hold more bad ones than the promised share
    by chance, were the bad share of all just `estimate` (None for a mean loss).

    `group` names the group of images whose own certificate this is about, None where the policy has one for
    all. `each_counts`: whether each mask weighs one, or each group of images, as the policy promises; then
    `group_by` is the pattern of the groups (None: groups.csv named them), and `uncovered` of the accepted
    masks, such as that of the image `uncovered_example`, are of no group that is known and count for nothing.

    `classes` are the promises about classes. The state is about all that is promised and covered: broken when
    anything is, kept when all is; so they share the error.
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
    unwatched: int
    nights: int
    upper_with_skips: float
    recent: Window | None
    kept_over: Window | None
    last_kept: str | None
    got_worse: bool
    masks_a_night: int
    night_above: float | None
    group: str | None
    each_counts: Literal["masks", "groups"]
    classes: tuple[ClassAudit, ...] = ()
    group_by: str | None = None
    uncovered: int = 0
    uncovered_example: str | None = None
    no_better: bool = False


@dataclass(frozen=True)
class Unjudged:
    """Policies of one model of which nothing can be said, since one of them cannot be read.

    That is the first, whose error is `why`: it names the file and the remedy. The others may have grown with
    it from the same one, so that some of their masks are unknown. `model_id` is None where nothing was
    labelled under it, which concerns no other. `suspended` ones accept nothing all the same; in_use: the
    newest mask was labelled under one of those, or under the first, which may be of their family.
    """

    policy_ids: tuple[str, ...]
    model_id: str | None
    why: str
    suspended: tuple[str, ...]
    in_use: bool


@dataclass(frozen=True)
class Audits:
    """What the audits say about each policy, oldest first, and about which nothing can be said."""

    found: list[PolicyAudit]
    unjudged: list[Unjudged]


def audit_output(output: str, model_id: str | None = None) -> Audits:
    """What the audits say about each policy that has labelled into OUTPUT; writes nothing.

    Policies of one family are one; a policy with certificates per group has one audit for each. Only of one
    model when `model_id` is given. A policy that is missing or damaged there stops no other model's audit, of
    its own those that grow: see Unjudged. Raises NotFoundError when OUTPUT does not exist or that model has
    not labelled into it, StorageError.
    """
    output = storage.normalise(output)
    kept = policies.kept_policies(output)
    read = {name: one for name, one in kept.items() if isinstance(one, Policy)}
    found = read_audited(output, read, model_id)
    unread = [one for one in _unread(output, kept, found) if model_id in (None, one.model_id)]
    asked = [one for one in _newest_of_each_family(read.values()) if model_id in (None, one.model_id)]
    stopped = [one for one in asked if one.growth and one.model_id in {of.model_id for of in unread}]
    return Audits(
        [one for policy in asked if policy not in stopped for one in _audits_of(output, policy, found)],
        [_unjudged(output, one, stopped, found.newest) for one in unread],
    )


def _unread(output: str, kept: Mapping[str, Policy | SegpipeError], found: Found) -> list[Unread]:
    missing = [one for one in found.missing if one.policy_id not in kept]
    if not any(isinstance(one, SegpipeError) for one in kept.values()):
        return missing
    return [*damaged_policies(kept, newest_runs(output)), *missing]


def _unjudged(output: str, unread: Unread, stopped: Iterable[Policy], newest: str | None) -> Unjudged:
    with_it = [one.family for one in stopped if one.model_id == unread.model_id]
    ids = tuple(dict.fromkeys([unread.policy_id, *with_it]))
    suspended = tuple(one for one in ids if policies.has_suspension(output, one))
    # Of which family the unread one is nobody knows: where another is suspended, it may be.
    in_use = newest in suspended or (newest == unread.policy_id and bool(suspended))
    return Unjudged(ids, unread.model_id, str(unread.why), suspended, in_use)


def _audits_of(output: str, policy: Policy, found: Found) -> Iterator[PolicyAudit]:
    """Of each of its promises."""
    for group, own in _promises(policy):
        yield _audited(
            own,
            group,
            found.series.get((policy.family, group), AuditedMasks([], [], 0, 0, {}, ClassAnswers())),
            suspended=_is_suspended(output, policy.family, group),
            in_use=policy.family == found.newest,
        )


def suspend_broken(output: str, audits: Iterable[PolicyAudit]) -> list[PolicyAudit]:
    """Suspend each policy, or group's certificate, that is shown broken, with the evidence; gives those newly
    suspended.

    StorageError.
    """
    output = storage.normalise(output)
    broken = [audit for audit in audits if audit.state == "broken" and not audit.suspended]
    return [
        audit for audit in broken if policies.suspend(output, audit.policy_id, _evidence(audit), audit.group)
    ]


def _newest_of_each_family(kept: Iterable[Policy]) -> list[Policy]:
    # By its number: a clock that was set back makes a grown policy look older than what it has grown from.
    by_family = {
        policy.family: policy
        for policy in sorted(kept, key=lambda policy: policy.growth.number if policy.growth else 0)
    }
    return sorted(by_family.values(), key=lambda policy: policy.created_at)


def _is_suspended(output: str, family: str, group: str) -> bool:
    """With its policy, or its certificate alone."""
    return policies.is_suspended(output, family) or (
        bool(group) and policies.is_suspended(output, family, group)
    )


def _promises(policy: Policy) -> list[tuple[str, Policy]]:
    """The policy as it stands for each group that has a certificate to accept by, else for all ('')."""
    certified = [one for one in policy.certificates if one.threshold is not None]
    return [(one.group, policy.of_group(one)) for one in certified] or [("", policy)]


def _audited(
    policy: Policy, group: str, masks: AuditedMasks, *, suspended: bool, in_use: bool
) -> PolicyAudit:
    """Of a policy as it stands for a group, '' for all; suspended and in_use: see PolicyAudit."""
    limit, counts_bad = _limit(policy.promised)
    error = (1 - policy.confidence) / 2 / _promised_at_once(policy)
    classes = _audited_classes(policy, masks, error)
    bets, told = _bets(masks, limit, error), _told(masks.nights, limit, error)
    states = {one.state for one in classes} - {"not_covered"}
    states |= _state(policy.promised, bets["lower"] > limit, told["kept_over"] is not None)
    if broken := suspended or "broken" in states:
        told["kept_over"] = None
    return PolicyAudit(
        **_of_policy(policy, group),
        limit=limit,
        state="broken" if broken else "kept" if states == {"kept"} else "undecided",
        suspended=suspended,
        in_use=in_use,
        classes=classes,
        **_counts(masks, counts_bad),
        **bets,
        **told,
        **_ordinary_night(masks, limit, told["estimate"] if counts_bad else None),
    )


def _of_policy(policy: Policy, group: str) -> dict[str, Any]:
    """What a PolicyAudit repeats of the policy."""
    by_groups = counts_groups(policy)
    return {
        "policy_id": policy.family,
        "model_id": policy.model_id,
        "promise": promise(policy),
        "target": policy.promised.target,
        "confidence": policy.confidence,
        "group": group or None,
        "each_counts": "groups" if by_groups else "masks",
        "group_by": policy.group_by if by_groups else None,
    }


def _counts(masks: AuditedMasks, counts_bad: bool) -> dict[str, Any]:
    """How many masks there are of each kind that a PolicyAudit tells apart."""
    audits = masks.audits
    covered = [audit for audit in audits if audit.covered]
    counted = [audit for audit in reached(audits) if audit.covered and audit.loss is not None]
    return {
        "accepted": masks.accepted,
        "drawn": len(audits),
        "audited": len(counted),
        "bad": sum(audit.loss == 1 for audit in counted) if counts_bad else None,
        "open": sum(audit.is_open for audit in audits),
        "held_back": sum(audit.loss is not None for audit in covered) - len(counted),
        "skipped": sum(audit.loss is None and audit.decided for audit in covered),
        "withdrawn": sum(not audit.decided and not audit.in_queue for audit in audits),
        "oldest_open": next((audit.image_uri for audit in audits if audit.is_open), None),
        "by_month": _by_month(masks.nights),
        "unwatched": masks.unwatched,
        "uncovered": masks.uncovered,
        "uncovered_example": masks.uncovered_example,
    }


def _bets(masks: AuditedMasks, limit: float, error: float) -> dict[str, Any]:
    """Whether the promise is broken: what betting on the nights shows of which all audits are answered."""
    whole = [night for night in masks.nights if _is_whole(night.day, cutoff_of(masks.audits))]
    losses, weights = audit_nights.night_bets(whole)
    return {
        "lower": lower_end(losses, error, weights),
        "p_value": float(p_values_above(losses, limit, weights).min(initial=1.0)),
        "nights": len(losses),
    }


def _told(nights: Sequence[Night], limit: float, error: float) -> dict[str, Any]:
    """What the draw tells of the masks accepted so far, and of those of the last nights."""
    overall = audit_nights.all_nights(nights, error)
    recent = audit_nights.recent_nights(nights, limit, error)
    kept_over = audit_nights.kept_over(nights, limit, error)
    kept = kept_over or audit_nights.last_kept(nights, limit, error)
    return {
        "estimate": overall.estimate if overall else None,
        "upper": overall.upper if overall else 1.0,
        "upper_with_skips": overall.upper_with_skips if overall else 1.0,
        "recent": recent,
        "kept_over": kept_over,
        "last_kept": kept.until if kept else None,
        "got_worse": bool(kept and not kept_over and recent and recent.lower > kept.upper_with_skips),
        "more_needed": audit_nights.answers_missing(nights, limit, error),
        "no_better": audit_nights.look_no_better(nights, limit, error),
    }


def _ordinary_night(masks: AuditedMasks, limit: float, bad_share: float | None) -> dict[str, Any]:
    """How often a night is above the limit by chance; bad_share (0 to 1) is None where nothing says so."""
    masks_a_night = _median(masks.masks_by_night.values())
    return {"masks_a_night": masks_a_night, "night_above": _night_above(masks_a_night, limit, bad_share)}


def _state(promised: MaskPromise, broken: bool, kept: bool) -> set[State]:
    """Of the promise about masks, where there is one."""
    if isinstance(promised, ClassesOnly):
        return set()
    return {"broken" if broken else "kept" if kept else "undecided"}


def _audited_classes(policy: Policy, masks: AuditedMasks, error: float) -> tuple[ClassAudit, ...]:
    """What is said of each promise about a class. An image of a group that counts once cannot be weighed: of
    how many of its images the promise is about, a draw does not tell."""
    if policy.counts_groups_once:
        return tuple(not_covered(one) for one in policy.class_promises)
    least = {
        night.day: min(cell.share for cell in night.accepted) for night in masks.nights if night.accepted
    }
    cutoff = cutoff_of(masks.audits)
    by_promise = [(one, class_nights(one, masks.of_classes, least)) for one in policy.class_promises]
    return tuple(
        audited_class(one, nights, [night for night in nights if _is_whole(night.day, cutoff)], error)
        for one, nights in by_promise
    )


def _is_whole(day: date, cutoff: datetime | None) -> bool:
    """Before the night of the oldest open audit: a bet is placed on a night once, when all is said of it."""
    return cutoff is None or day < cutoff.astimezone(UTC).date()


def _promised_at_once(policy: Policy) -> int:
    """How many promises share the error."""
    return len(policy.class_promises) + (not isinstance(policy.promised, ClassesOnly))


def _limit(promised: MaskPromise) -> tuple[float, bool]:
    """The promised limit, and whether it is one of bad masks; any loss is allowed where masks have none."""
    match promised:
        case BadFractionPromise():
            return promised.max_bad_fraction, True
        case MeanLossPromise():
            return promised.max_mean_loss, False
        case ClassesOnly():
            return 1.0, False


def _by_month(nights: Iterable[Night]) -> dict[str, dict[str, float]]:
    months: defaultdict[str, list[Night]] = defaultdict(list)
    for night in nights:
        months[f"{night.day:%Y-%m}"].append(night)
    audited = {
        month: sum(one.loss is not None for night in some for one in night.drawn)
        for month, some in months.items()
    }
    estimates = {month: sampled_mean(strata_of(some)) for month, some in months.items()}
    return {
        month: {"audited": audited[month], "estimate": estimate}
        for month, estimate in estimates.items()
        if estimate is not None
    }


def _median(counts: Iterable[int]) -> int:
    return int(np.median(list(counts) or [0]))


def _night_above(masks: int, limit: float, estimate: float | None) -> float | None:
    """The probability that of so many masks, each bad with chance `estimate`, more than `limit` are."""
    if estimate is None or not masks:
        return None
    return float(binom.sf(math.floor(limit * masks + 1e-9), masks, estimate))


def _evidence(audit: PolicyAudit) -> str:
    found = {"suspended_at": datetime.now(UTC).isoformat(), "reason": in_words(audit), **asdict(audit)}
    return json.dumps(found, indent=2, ensure_ascii=False)
