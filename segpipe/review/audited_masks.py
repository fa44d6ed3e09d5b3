"""What was accepted and audited under each promise, read from OUTPUT.

Audits count in the order in which the masks were labelled and drawn, up to the oldest without an answer. So
the order is fixed before anyone looks: in the order of the answers a queue that shows doubtful masks first
would look like a broken promise. A mask that a person skipped, or that left the queue because its image
changed or another model took over, has no answer and holds nothing back.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from segpipe.confidence.policy import BadFractionPromise, MaskPromise, Policy
from segpipe.errors import NotFoundError, PolicyError, StorageError
from segpipe.manifests import policies
from segpipe.manifests.queues import Selected, read_selected
from segpipe.manifests.views import open_views
from segpipe.metrics import IouRule
from segpipe.name_groups import group_if_known, group_of, group_of_address
from segpipe.redaction import redact
from segpipe.review.audit_groups import counts_groups, sources_of, unit_of
from segpipe.review.audit_nights import Accepted, Drawn, Night, nights_of
from segpipe.review.class_answers import read_class_answers
from segpipe.review.class_audit import ClassAnswers
from segpipe.review.policy_runs import Unread

logger = logging.getLogger(__name__)

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
class AuditedMasks:
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
class Found:
    """What was accepted and audited under each promise; the family last used; policies that are missing."""

    series: Mapping[Series, AuditedMasks]
    newest: str | None
    missing: Sequence[Unread]


def read_audited(output: str, kept: Mapping[str, Policy], model_id: str | None) -> Found:
    """Of all policies whose masks are audited; `kept` are those that can be read, by their ids.

    Raises NotFoundError when the model, if one is given, has labelled nothing there, StorageError.
    """
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
    return Found(series, newest[0][0] if newest else None, _missing(rows, kept, output))


def _read_series(
    connection: duckdb.DuckDBPyConnection,
    audits: Mapping[Series, Sequence[Audit]],
    kept: Mapping[str, Policy],
    output: str,
) -> dict[Series, AuditedMasks]:
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
        {"family": family, "certificate": certificate, "cutoff": cutoff_of(found)}
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
                "audited masks is unknown: put the policy.json of that calibration there, or its "
                "...-grown-... file of that folder"
            ),
        )
        for policy_id in sorted(models)
    ]


def cutoff_of(audits: Sequence[Audit]) -> datetime | None:
    """When the oldest open audit was labelled: masks from then on do not count yet."""
    return min((audit.labeled_at for audit in audits if audit.is_open), default=None)


def reached(audits: Sequence[Audit]) -> list[Audit]:
    cutoff = cutoff_of(audits)
    return [audit for audit in audits if cutoff is None or audit.labeled_at < cutoff]


def _series(
    audits: Sequence[Audit], cells: Sequence[Mapping[str, Any]], of_classes: ClassAnswers
) -> AuditedMasks:
    weights = _weights(cells)
    accepted = [
        Accepted(_day(cell), cell["share"], cell["masks"], cell["masks"] * weights[cell["unit"]])
        for cell in cells
        if cell["masks"] and cell["covered"]
    ]
    drawn = [
        Drawn(one.night, one.share, weights[one.unit], one.loss)
        for one in reached(audits)
        if one.decided and one.covered
    ]
    by_night: defaultdict[date, int] = defaultdict(int)
    for cell in accepted:
        by_night[cell.night] += cell.masks
    return AuditedMasks(
        audits=audits,
        nights=nights_of(accepted, drawn),
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
