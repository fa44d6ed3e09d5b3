"""Is the promise kept? What people said about audited masks, against what their policy promised.

Audits count in the order in which the masks were labelled and drawn, up to the oldest without an answer. So
the order is fixed before anyone looks: in the order of the answers a queue that shows doubtful masks first
would look like a broken promise. A mask that a person skipped, or that left the queue because its image
changed or another model took over, has no answer and holds nothing back.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
from scipy.stats import binom

from segpipe import storage
from segpipe.confidence.confidence_sequence import lower_end, p_values_above
from segpipe.confidence.policy import BadFractionPromise, ClassesOnly, MaskPromise, MeanLossPromise, Policy
from segpipe.confidence.promise import promise
from segpipe.confidence.sampled_mean import sampled_mean
from segpipe.errors import NotFoundError, PolicyError, SegpipeError, StorageError
from segpipe.manifests import policies
from segpipe.manifests.queues import Selected, read_selected
from segpipe.manifests.views import open_views
from segpipe.metrics import IouRule
from segpipe.name_groups import group_if_known, group_of, group_of_address
from segpipe.redaction import redact
from segpipe.review import audit_nights
from segpipe.review.audit_groups import counts_groups, sources_of, unit_of
from segpipe.review.audit_nights import Accepted, Drawn, Night, Window, strata_of
from segpipe.review.audit_words import in_words
from segpipe.review.class_answers import read_class_answers
from segpipe.review.class_audit import ClassAnswers, ClassAudit, audited_class, class_nights, not_covered
from segpipe.review.policy_runs import Unread, damaged_policies, newest_runs

logger = logging.getLogger(__name__)

State = Literal["kept", "undecided", "broken"]
Series = tuple[str, str]  # the family that audits count under, and the group with a certificate of its own

_AUDITS = """
    SELECT coalesce(f.family, l.policy_id) AS family, coalesce(n.certificate, '') AS certificate,
        coalesce(n.unit, '') AS unit, coalesce(n.covered, true) AS covered, l.policy_id, l.model_id,
        l.labeled_at, l.image_uri,
        coalesce(l.inclusion_probability, 1) AS share, r.verdict, r.draft_iou, r.draft_iou_graded,
        EXISTS (FROM latest t WHERE (t.image_uri, t.image_etag, t.model_id)
            = (l.image_uri, l.image_etag, l.model_id)) AS in_queue
    FROM labels l LEFT JOIN families f USING (policy_id) LEFT JOIN names n USING (policy_id, image_uri)
    LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
        = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
    WHERE l.decision = 'accepted' AND l.audit AND l.policy_id IS NOT NULL
    ORDER BY family, l.labeled_at, l.image_uri"""
_CELLS = """
    SELECT coalesce(f.family, l.policy_id) AS family, coalesce(n.certificate, '') AS certificate,
        coalesce(n.unit, '') AS unit, coalesce(n.covered, true) AS covered,
        epoch_us(l.labeled_at) // 86400000000 AS day,
        coalesce(l.inclusion_probability, 1) AS share, count(*) AS labelled,
        count(*) FILTER (l.decision = 'accepted') AS accepted,
        count(*) FILTER (l.decision = 'accepted' AND (c.cutoff IS NULL OR l.labeled_at < c.cutoff)) AS masks
    FROM labels l LEFT JOIN families f USING (policy_id) LEFT JOIN names n USING (policy_id, image_uri)
    LEFT JOIN cutoffs c ON (c.family, c.certificate)
        = (coalesce(f.family, l.policy_id), coalesce(n.certificate, ''))
    WHERE l.decision IN ('accepted', 'review') AND l.policy_id IS NOT NULL
    GROUP BY ALL ORDER BY ALL"""
_IMAGES = """
    SELECT policy_id, image_uri, max(run_id) AS run_id FROM labels
    WHERE list_contains($policies, policy_id) GROUP BY ALL"""
_UNCOVERED = """
    SELECT coalesce(f.family, l.policy_id) AS family, coalesce(n.certificate, '') AS certificate,
        count(*) AS masks, min(l.image_uri) AS example
    FROM labels l LEFT JOIN families f USING (policy_id) JOIN names n USING (policy_id, image_uri)
    WHERE l.decision = 'accepted' AND NOT n.covered GROUP BY ALL"""
_NEWEST = """
    SELECT coalesce(f.family, policy_id) FROM labels LEFT JOIN families f USING (policy_id)
    WHERE $model_id IS NULL OR model_id = $model_id
    ORDER BY labeled_at DESC, run_id DESC, shard DESC LIMIT 1"""
_FAMILIES = pa.schema([("policy_id", pa.string()), ("family", pa.string())])
_NAMES = pa.schema(
    [(name, pa.string()) for name in ("policy_id", "image_uri", "certificate", "unit")]
    + [("covered", pa.bool_())]
)
_CUTOFFS = pa.schema(
    [("family", pa.string()), ("certificate", pa.string()), ("cutoff", pa.timestamp("us", tz="UTC"))]
)


@dataclass(frozen=True)
class Audit:
    """One mask drawn for the audit; loss (0 to 1) is None without an answer, decided: somebody was asked.

    `share` (0 to 1) was its chance to be drawn, `unit` names the group of images that weighs one, if such do;
    not covered: such do, and which one it belongs to is not known.
    """

    labeled_at: datetime
    image_uri: str
    unit: str
    covered: bool
    share: float
    loss: float | None
    decided: bool
    in_queue: bool

    @property
    def is_open(self) -> bool:
        """Whether an answer is still to come."""
        return not self.decided and self.in_queue

    @property
    def night(self) -> date:
        """The UTC day it was labelled on."""
        return self.labeled_at.astimezone(UTC).date()


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
class _Series:
    """What was accepted and audited under one promise; `nights` reach up to the oldest open audit."""

    audits: Sequence[Audit]
    nights: Sequence[Night]
    accepted: int
    unwatched: int
    masks_by_night: Mapping[date, int]
    of_classes: ClassAnswers
    uncovered: int = 0
    uncovered_example: str | None = None


@dataclass(frozen=True)
class Unjudged:
    """Policies of one model of which nothing can be said, since one of them cannot be read.

    That is the first, whose error is `why`: it names the file and the remedy. The others may have grown with
    it from the same one, so that some of their masks are unknown. `model_id` is None where nothing was
    labelled under it, which concerns no other. `suspended` ones accept nothing all the same; in_use: the
    newest mask was labelled under one of those.
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


@dataclass(frozen=True)
class _Found:
    """What was accepted and audited under each promise; the family last used; policies that are missing."""

    series: Mapping[Series, _Series]
    newest: str | None
    missing: Sequence[Unread]


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
    found = _read(output, read, model_id)
    unread = [one for one in _unread(output, kept, found) if model_id in (None, one.model_id)]
    asked = [one for one in _newest_of_each_family(read.values()) if model_id in (None, one.model_id)]
    stopped = [one for one in asked if one.growth and one.model_id in {of.model_id for of in unread}]
    return Audits(
        [one for policy in asked if policy not in stopped for one in _audits_of(output, policy, found)],
        [_unjudged(output, one, stopped, found.newest) for one in unread],
    )


def _unread(output: str, kept: Mapping[str, Policy | SegpipeError], found: _Found) -> list[Unread]:
    missing = [one for one in found.missing if one.policy_id not in kept]
    if not any(isinstance(one, SegpipeError) for one in kept.values()):
        return missing
    return [*damaged_policies(kept, newest_runs(output)), *missing]


def _unjudged(output: str, unread: Unread, stopped: Iterable[Policy], newest: str | None) -> Unjudged:
    with_it = (one.family for one in stopped if one.model_id == unread.model_id)
    ids = (unread.policy_id, *with_it)
    suspended = tuple(one for one in ids if policies.has_suspension(output, one))
    return Unjudged(ids, unread.model_id, str(unread.why), suspended, newest in suspended)


def _audits_of(output: str, policy: Policy, found: _Found) -> Iterator[PolicyAudit]:
    """Of each of its promises."""
    for group, own in _promises(policy):
        yield _audited(
            own,
            group,
            found.series.get((policy.family, group), _Series([], [], 0, 0, {}, ClassAnswers())),
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


def _read(output: str, kept: Mapping[str, Policy], model_id: str | None) -> _Found:
    """NotFoundError: the model has labelled nothing there."""
    with open_views(output) as connection:
        connection.register("families", _families(kept.values()))
        newest = connection.execute(_NEWEST, {"model_id": model_id}).fetchall()
        if model_id is not None and not newest:  # "nothing was promised" would be a false all-clear
            raise NotFoundError(
                f"model {model_id} has labelled nothing into {redact(output)}: give the one that has"
            )
        connection.register("names", _names(connection, kept, output))
        rows = connection.sql(_AUDITS).to_arrow_table().to_pylist()
        series = _read_series(connection, _by_promise(rows, kept), kept, output)
    return _Found(series, newest[0][0] if newest else None, _missing(rows, kept, output))


def _read_series(
    connection: duckdb.DuckDBPyConnection,
    audits: Mapping[Series, Sequence[Audit]],
    kept: Mapping[str, Policy],
    output: str,
) -> dict[Series, _Series]:
    connection.register("cutoffs", _cutoffs(audits))
    cells = _by_series(connection.sql(_CELLS).to_arrow_table().to_pylist())
    about_classes = [name for name, policy in kept.items() if policy.class_promises]
    of_classes = _read_classes(connection, about_classes, output)
    uncovered = _by_series(connection.sql(_UNCOVERED).to_arrow_table().to_pylist())
    found = {
        name: _series(audits.get(name, []), of_one, of_classes.get(name, ClassAnswers()))
        for name, of_one in cells.items()
    }
    for name, (row,) in uncovered.items():
        found[name] = replace(found[name], uncovered=row["masks"], uncovered_example=row["example"])
    return found


def _families(kept: Iterable[Policy]) -> pa.Table:
    rows = [{"policy_id": policy.policy_id, "family": policy.family} for policy in kept]
    return pa.Table.from_pylist(rows, _FAMILIES)


def _cutoffs(audits: Mapping[Series, Sequence[Audit]]) -> pa.Table:
    rows = [
        {"family": family, "certificate": certificate, "cutoff": _cutoff(found)}
        for (family, certificate), found in audits.items()
    ]
    return pa.Table.from_pylist(rows, _CUTOFFS)


def _read_classes(
    connection: duckdb.DuckDBPyConnection, policies: Sequence[str], output: str
) -> dict[Series, ClassAnswers]:
    return read_class_answers(connection, policies, _selected(output)) if policies else {}


def _selected(output: str) -> Selected:
    """Where a record cannot be read nothing is known of draws, which can only hide what they would show."""
    try:
        return read_selected(output)
    except StorageError as error:
        logger.warning("masks in review that nobody has answered count as if none were drawn: %s", error)
        return Selected({})


def _names(connection: duckdb.DuckDBPyConnection, kept: Mapping[str, Policy], output: str) -> pa.Table:
    """What group the images of those policies belong to that know groups."""
    grouped = [name for name, policy in kept.items() if policy.per is not None or counts_groups(policy)]
    if not grouped:
        return _NAMES.empty_table()
    images = connection.sql(_IMAGES, params={"policies": grouped}).to_arrow_table().to_pylist()
    sources = sources_of(output, {row["run_id"] for row in images if counts_groups(kept[row["policy_id"]])})
    rows = [_named(kept[row["policy_id"]], row, sources) for row in images]
    return pa.Table.from_pylist(rows, _NAMES)


def _named(policy: Policy, image: Mapping[str, str], sources: Mapping[str, str]) -> dict[str, Any]:
    uri, grouped = image["image_uri"], counts_groups(policy)
    unit = unit_of(policy, uri, sources.get(image["run_id"])) if grouped else None
    certificate = None if policy.per is None else _group_accepted_by(uri, policy.per)
    covered = unit is not None or not grouped
    return {**image, "certificate": certificate, "unit": unit, "covered": covered}


def _group_accepted_by(uri: str, per: str) -> str | None:
    """Also by a version that took the first match of an address that names several groups."""
    return group_if_known(group_of_address, uri, per) or group_if_known(group_of, uri, per)


def _by_series(rows: Iterable[dict[str, Any]]) -> dict[Series, list[dict[str, Any]]]:
    by_series: defaultdict[Series, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_series[row["family"], row["certificate"]].append(row)
    return by_series


def _by_promise(rows: Iterable[dict[str, Any]], kept: Mapping[str, Policy]) -> dict[Series, list[Audit]]:
    """The audits of those policies that can be read."""
    known = (row for row in rows if row["policy_id"] in kept)
    return {
        name: [_as_audit(row, kept[row["policy_id"]]) for row in of_one]
        for name, of_one in _by_series(known).items()
    }


def _missing(audited: Iterable[Mapping[str, Any]], kept: Mapping[str, Policy], output: str) -> list[Unread]:
    """Policies of audited masks that are not among those read."""
    models = {row["policy_id"]: row["model_id"] for row in audited if row["policy_id"] not in kept}
    return [
        Unread(
            policy_id,
            models[policy_id],
            PolicyError(
                f"{redact(policies.kept_uri(output, policy_id))} is missing, so what was promised about the "
                "audited masks is unknown: put the policy.json of that calibration there"
            ),
        )
        for policy_id in sorted(models)
    ]


def _cutoff(audits: Sequence[Audit]) -> datetime | None:
    """When the oldest open audit was labelled: masks from then on do not count yet."""
    return min((audit.labeled_at for audit in audits if audit.is_open), default=None)


def _reached(audits: Sequence[Audit]) -> list[Audit]:
    cutoff = _cutoff(audits)
    return [audit for audit in audits if cutoff is None or audit.labeled_at < cutoff]


def _series(audits: Sequence[Audit], cells: Sequence[Mapping[str, Any]], of_classes: ClassAnswers) -> _Series:
    weights = _weights(cells)
    accepted = [
        Accepted(_day(cell), cell["share"], cell["masks"], cell["masks"] * weights[cell["unit"]])
        for cell in cells
        if cell["masks"] and cell["covered"]
    ]
    drawn = [
        Drawn(one.night, one.share, weights[one.unit], one.loss)
        for one in _reached(audits)
        if one.decided and one.covered
    ]
    by_night: defaultdict[date, int] = defaultdict(int)
    for cell in accepted:
        by_night[cell.night] += cell.masks
    return _Series(
        audits=audits,
        nights=audit_nights.nights_of(accepted, drawn),
        accepted=sum(cell["accepted"] for cell in cells),
        unwatched=sum(cell["accepted"] for cell in cells if not cell["share"]),
        masks_by_night=by_night,
        of_classes=of_classes,
    )


def _day(cell: Mapping[str, Any]) -> date:
    return date(1970, 1, 1) + timedelta(cell["day"])


def _weights(cells: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What a mask of each unit weighs: all images of a unit, accepted or not, weigh one together."""
    labelled: defaultdict[str, int] = defaultdict(int)
    for cell in cells:
        labelled[cell["unit"]] += cell["labelled"]
    return {unit: 1 / count if unit else 1.0 for unit, count in labelled.items()}


def _as_audit(row: Mapping[str, Any], policy: Policy) -> Audit:
    return Audit(
        labeled_at=row["labeled_at"],
        image_uri=row["image_uri"],
        unit=row["unit"],
        covered=row["covered"],
        share=row["share"],
        loss=loss_of(row["verdict"], draft_iou_by(row, policy.rule), policy.promised),
        decided=row["verdict"] is not None,
        in_queue=row["in_queue"],
    )


def draft_iou_by(row: Mapping[str, Any], rule: IouRule) -> float | None:
    """By the policy's rule. A decision of a version without the graded one has the other, which is never
    higher and so flatters no promise."""
    graded: float | None = row["draft_iou_graded"] if rule == "graded" else None
    every_class: float | None = row["draft_iou"]
    return every_class if graded is None else graded


def loss_of(verdict: str | None, draft_iou: float | None, promised: MaskPromise) -> float | None:
    """What a mask loses by the policy's own measure, 0 to 1; None when nobody has said what is right."""
    iou = {"accepted": 1.0, "corrected": draft_iou, "rejected": 0.0}.get(str(verdict))
    if iou is None or not 0 <= iou <= 1:
        return None
    return float(iou < promised.min_iou) if isinstance(promised, BadFractionPromise) else 1 - iou


def _audited(policy: Policy, group: str, series: _Series, *, suspended: bool, in_use: bool) -> PolicyAudit:
    limit, is_bad_fraction = _limit(policy.promised)
    error = (1 - policy.confidence) / 2 / _promised_at_once(policy)
    classes = _audited_classes(policy, series, error)
    audits, nights = series.audits, series.nights
    covered = [audit for audit in audits if audit.covered]
    counted = [audit for audit in _reached(audits) if audit.covered and audit.loss is not None]
    whole = [night for night in nights if _is_whole(night.day, _cutoff(audits))]
    losses, weights = audit_nights.night_bets(whole)
    lower = lower_end(losses, error, weights)
    overall = audit_nights.all_nights(nights, error)
    recent = audit_nights.recent_nights(nights, limit, error)
    kept_over = audit_nights.kept_over(nights, limit, error)
    states = {one.state for one in classes} - {"not_covered"}
    states |= _state(policy.promised, lower > limit, kept_over is not None)
    broken = suspended or "broken" in states
    kept = kept_over or audit_nights.last_kept(nights, limit, error)
    masks_a_night = _median(series.masks_by_night.values())
    estimate = overall.estimate if overall else None
    return PolicyAudit(
        policy_id=policy.family,
        model_id=policy.model_id,
        promise=promise(policy),
        target=policy.promised.target,
        limit=limit,
        confidence=policy.confidence,
        state="broken" if broken else "kept" if states == {"kept"} else "undecided",
        suspended=suspended,
        in_use=in_use,
        accepted=series.accepted,
        drawn=len(audits),
        audited=len(counted),
        bad=sum(audit.loss == 1 for audit in counted) if is_bad_fraction else None,
        estimate=estimate,
        lower=lower,
        upper=overall.upper if overall else 1.0,
        p_value=float(p_values_above(losses, limit, weights).min(initial=1.0)),
        more_needed=audit_nights.answers_missing(nights, limit, error),
        open=sum(audit.is_open for audit in audits),
        held_back=sum(audit.loss is not None for audit in covered) - len(counted),
        skipped=sum(audit.loss is None and audit.decided for audit in covered),
        withdrawn=sum(not audit.decided and not audit.in_queue for audit in audits),
        oldest_open=next((audit.image_uri for audit in audits if audit.is_open), None),
        by_month=_by_month(nights),
        unwatched=series.unwatched,
        nights=len(losses),
        upper_with_skips=overall.upper_with_skips if overall else 1.0,
        recent=recent,
        kept_over=None if broken else kept_over,
        last_kept=kept.until if kept else None,
        got_worse=bool(kept and not kept_over and recent and recent.lower > kept.upper_with_skips),
        masks_a_night=masks_a_night,
        night_above=_night_above(masks_a_night, limit, estimate) if is_bad_fraction else None,
        group=group or None,
        each_counts="groups" if counts_groups(policy) else "masks",
        classes=classes,
        group_by=policy.group_by if counts_groups(policy) else None,
        uncovered=series.uncovered,
        uncovered_example=series.uncovered_example,
        no_better=audit_nights.look_no_better(nights, limit, error),
    )


def _promised_at_once(policy: Policy) -> int:
    """How many promises share the error."""
    return len(policy.class_promises) + (not isinstance(policy.promised, ClassesOnly))


def _state(promised: MaskPromise, broken: bool, kept: bool) -> set[State]:
    """Of the promise about masks, where there is one."""
    if isinstance(promised, ClassesOnly):
        return set()
    return {"broken" if broken else "kept" if kept else "undecided"}


def _audited_classes(policy: Policy, series: _Series, error: float) -> tuple[ClassAudit, ...]:
    """What is said of each promise about a class. An image of a group that counts once cannot be weighed: of
    how many of its images the promise is about, a draw does not tell."""
    if policy.counts_groups_once:
        return tuple(not_covered(one) for one in policy.class_promises)
    least = {
        night.day: min(cell.share for cell in night.accepted) for night in series.nights if night.accepted
    }
    cutoff = _cutoff(series.audits)
    by_promise = [(one, class_nights(one, series.of_classes, least)) for one in policy.class_promises]
    return tuple(
        audited_class(one, nights, [night for night in nights if _is_whole(night.day, cutoff)], error)
        for one, nights in by_promise
    )


def _is_whole(day: date, cutoff: datetime | None) -> bool:
    """Before the night of the oldest open audit: a bet is placed on a night once, when all is said of it."""
    return cutoff is None or day < cutoff.astimezone(UTC).date()


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
