"""What a run did: each part carries its own figures, and a run's totals are their sum."""

from __future__ import annotations

import heapq
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.confidence.drift import Drift, drift_metadata, drift_of_metadata
from segpipe.confidence.group_drift import group_drift_metadata, group_drift_of_metadata
from segpipe.labeling.items import Legs, Threads, bottleneck, legs_of, per_thread
from segpipe.labeling.plan import RunPlan, finished_parts
from segpipe.manifests.parts import telling_damage

_SECONDS, _LEGS, _OCCUPIED = "segpipe.seconds", "segpipe.legs", "segpipe.legs_per_thread"
_COLUMNS = ["image_uri", "mask_uri", "decision", "reason", "confidence", "error"]
_PARTS_AT_ONCE = 8
WORST_SHOWN = 10


@dataclass(frozen=True)
class WorstImage:
    """An image that a person should look at first: the manifest row's own columns."""

    image_uri: str
    mask_uri: str | None
    decision: str
    reason: str
    confidence: float | None
    error: str | None


@dataclass(frozen=True)
class RunSummary:
    """What a run did, counted from the parts it has committed.

    labelled_elsewhere counts planned images that another run labelled first; already_done those that had a
    row before the run was planned. seconds is the time spent labelling, over all resumes; legs are seconds
    per leg, summed over threads, bottleneck is the longest leg of the busier threads, None without work.
    reasons counts rows per reason, skipped the objects left aside. drift is what the drift gate found, None
    when nothing could be accepted anyway or nothing was labelled, and where the policy has certificates per
    group, whose verdicts are in drift_by_group. worst are up to ten failed images, one for
    each reason among them, and the ten of the lowest confidence.
    """

    run_id: str
    source: str
    output: str
    model_id: str
    policy_id: str | None
    planned: int
    accepted: int
    review: int
    failed: int
    labelled_elsewhere: int
    already_done: int
    retried: int
    seconds: float
    images_per_second: float
    legs: dict[str, float]
    bottleneck: str | None
    reasons: dict[str, int]
    skipped: dict[str, int]
    drift: Drift | None
    worst: tuple[WorstImage, ...]
    drift_by_group: Mapping[str, Drift] = field(default_factory=dict)


@dataclass(frozen=True)
class PartTotals:
    """The figures of a part, or of several added up: rows per decision and reason, seconds, and so on."""

    decisions: Counter[str]
    reasons: Counter[str]
    seconds: float
    legs: Legs
    occupied: Legs
    drift: Drift | None
    worst: tuple[WorstImage, ...]
    drift_by_group: Mapping[str, Drift]


def to_metadata(
    seconds: float,
    legs: Legs,
    threads: Threads,
    drift: Drift | None,
    drift_by_group: Mapping[str, Drift] = {},
) -> dict[str, str]:
    """A part's own figures as the metadata it is committed with."""
    timing = {
        _SECONDS: repr(seconds),
        _LEGS: json.dumps(asdict(legs)),
        _OCCUPIED: json.dumps(asdict(per_thread(legs, threads))),
    }
    return timing | drift_metadata(drift) | group_drift_metadata(drift_by_group)


def summarise_run(plan: RunPlan) -> RunSummary:
    """The run so far, from its committed parts; raises StorageError."""
    return _summarise(plan, _sum_parts(plan))


def _sum_parts(plan: RunPlan) -> PartTotals:
    uris = [uri for _, uri in finished_parts(plan)]
    totals = PartTotals(Counter(), Counter(), 0.0, Legs(), Legs(), None, (), {})
    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for part in pool.map(read_totals, uris):
            totals = _add_totals(totals, part)
    return totals


def read_totals(uri: str) -> PartTotals:
    """The figures of one committed part; raises StorageError, also for a damaged one."""
    return totals_of(uri, storage.read_bytes(uri))


def totals_of(uri: str, content: bytes) -> PartTotals:
    """As `read_totals`, of a part that was read."""
    with telling_damage(uri):
        return _part_totals(pq.read_table(io.BytesIO(content), columns=_COLUMNS))


def _part_totals(table: pa.Table) -> PartTotals:
    metadata = table.schema.metadata
    return PartTotals(
        decisions=Counter(table["decision"].to_pylist()),
        reasons=Counter(table["reason"].to_pylist()),
        seconds=float(metadata[_SECONDS.encode()]),
        legs=legs_of(json.loads(metadata[_LEGS.encode()])),
        occupied=legs_of(json.loads(metadata[_OCCUPIED.encode()])),
        drift=drift_of_metadata(metadata),
        worst=_worst(WorstImage(**row) for row in table.to_pylist()),
        drift_by_group=group_drift_of_metadata(metadata),
    )


def _add_totals(one: PartTotals, other: PartTotals) -> PartTotals:
    return PartTotals(
        one.decisions + other.decisions,
        one.reasons + other.reasons,
        one.seconds + other.seconds,
        one.legs + other.legs,
        one.occupied + other.occupied,
        one.drift or other.drift,
        _worst((*one.worst, *other.worst)),
        one.drift_by_group or other.drift_by_group,
    )


def _worst(images: Iterable[WorstImage]) -> tuple[WorstImage, ...]:
    images = list(images)
    failed = [image for image in images if image.decision == "failed"]
    labelled = [image for image in images if image.decision != "failed"]
    lowest = heapq.nsmallest(WORST_SHOWN, labelled, key=lambda image: image.confidence or 0.0)
    return (*_of_each_reason(failed)[:WORST_SHOWN], *lowest)


def _of_each_reason(failed: list[WorstImage]) -> list[WorstImage]:
    """The first of each reason, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for image in failed:
        turns.append(seen[image.reason])
        seen[image.reason] += 1
    return [image for _, image in sorted(zip(turns, failed, strict=True), key=lambda turn: turn[0])]


def _summarise(plan: RunPlan, totals: PartTotals) -> RunSummary:
    images = totals.decisions.total()
    return RunSummary(
        run_id=plan.run_id,
        source=plan.source,
        output=plan.output,
        model_id=plan.model_id,
        policy_id=plan.policy_id,
        planned=plan.images.count,
        accepted=totals.decisions["accepted"],
        review=totals.decisions["review"],
        failed=totals.decisions["failed"],
        labelled_elsewhere=plan.images.count - images,
        already_done=plan.already_done,
        retried=plan.retried,
        seconds=totals.seconds,
        images_per_second=images / totals.seconds if totals.seconds else 0.0,
        legs=asdict(totals.legs),
        bottleneck=bottleneck(totals.occupied),
        reasons=dict(sorted(totals.reasons.items())),
        skipped=plan.skipped,
        drift=totals.drift,
        worst=totals.worst,
        drift_by_group=totals.drift_by_group,
    )
