"""A labelling run in words: decisions and reasons, the promise, the slowest leg, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.confidence.promise import promise
from segpipe.config import DEFAULT_ENGINE
from segpipe.labeling.estimate import cost
from segpipe.manifests.parts import manifests_root
from segpipe.manifests.policies import FOLDER, SUSPENDED
from segpipe.printable import printable
from segpipe.redaction import redact

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.config import LabelSettings
    from segpipe.labeling.estimate import Estimate
    from segpipe.labeling.totals import RunSummary
    from segpipe.models.labeler import Passes
    from segpipe.tiles import Tiling

_REVIEWED = frozenset({"low_confidence", "audit", "no_policy", "uncertified_group", "drift", "suspended"})


@dataclass(frozen=True)
class DecisionCount:
    """How many images of a run (share: 0 to 1) got one decision for one reason."""

    decision: str
    reason: str
    images: int
    share: float


def decision_counts(summary: RunSummary) -> list[DecisionCount]:
    """One count per reason, accepted first, then review, then failed."""
    total = sum(summary.reasons.values())
    counts = [
        DecisionCount(_decision(reason), reason, images, images / total)
        for reason, images in summary.reasons.items()
    ]
    order = ("accepted", "review", "failed")
    return sorted(counts, key=lambda count: (order.index(count.decision), -count.images, count.reason))


def _decision(reason: str) -> str:
    if reason == "confident":
        return "accepted"
    return "review" if reason in _REVIEWED else "failed"


def promise_line(policy: Policy | None) -> str:
    """What is promised about the accepted masks."""
    if policy is None:
        return "none: the model has no policy of its own, so every mask goes to review; run segpipe calibrate"
    return promise(policy)


def drift_line(summary: RunSummary) -> str | None:
    """Whether the scores still look like the calibration's; None when nothing could be accepted anyway."""
    drift = summary.drift
    if drift is None:
        return _group_drift_line(summary)
    rate = f"{drift.false_alarm_rate:g}"
    if drift.p_value is None:
        return f"not tested: too few scores ({drift.n_scores}) for a false alarm rate of {rate}"
    together = f" and those of up to {drift.earlier_runs} runs before" if drift.earlier_runs else ""
    allowed = f", a distance of {drift.tolerance:.2g} allowed since runs differ" if drift.tolerance else ""
    tested = f"p = {drift.p_value:.2g} over {drift.n_scores} scores{together}{allowed}, alarm at {rate}"
    if not drift.alarm:
        return f"none found ({tested})"
    reviewed = "drift" in summary.reasons
    return (
        f"ALARM, the images are not like the calibration images ({tested}); "
        f"{'all masks went to review' if reviewed else 'only warned of, masks were accepted'}: "
        "look at the images, recalibrate or retrain"
    )


def _group_drift_line(summary: RunSummary) -> str | None:
    """The same of groups that are tested by themselves; None without such."""
    drifts = summary.drift_by_group
    if not drifts:
        return None
    alarmed = {group: drift for group, drift in drifts.items() if drift.alarm}
    untested = sum(drift.p_value is None for drift in drifts.values())
    rest = (
        f"{len(drifts) - len(alarmed) - untested} groups show none, {untested} have too few scores for a test"
    )
    if not alarmed:
        return f"none found ({rest})"
    named = ", ".join(
        f"{printable(group)} (p = {drift.p_value:.2g} over {drift.n_scores} scores, alarm at "
        f"{drift.false_alarm_rate:.2g})"
        for group, drift in alarmed.items()
    )
    what = "their masks went to review" if "drift" in summary.reasons else "only warned of"
    return (
        f"ALARM, not like their calibration images: {named}; {what}; {rest}: look at the images, "
        "recalibrate or retrain"
    )


def policy_line(policy: Policy | None) -> str | None:
    """That the policy has grown in OUTPUT and is nearer than the model's; None for the model's own."""
    if policy is None or policy.growth is None or policy.growth.root is None:
        return None
    return (
        f"{policy.policy_id}, number {policy.growth.number} that has grown in OUTPUT from the model's own "
        f"{policy.growth.root}: the nearer one holds"
    )


def suspension_line(summary: RunSummary, policy: Policy | None = None) -> str | None:
    """That the policy is suspended, and the remedy; None when it kept no mask from being accepted.

    It is named by its family's id where `policy` is known.
    """
    images = summary.reasons.get("suspended")
    if not images:
        return None
    family = str(summary.policy_id if policy is None else policy.family)
    evidence = storage.join(redact(summary.output), f"{FOLDER}/*{SUSPENDED}")
    return (
        f"SUSPENDED: the audit has shown that the promise of policy {family} is broken, {images} "
        f"images went to review (evidence: {evidence}): look at the masks found bad, then calibrate on "
        "images like these, or retrain"
    )


def planned_line(summary: RunSummary) -> str:
    """How many images were planned, and what became of the others."""
    others = {
        "already done": summary.already_done,
        "labelled by another run": summary.labelled_elsewhere,
        "tried again": summary.retried,
        **{f"{kind} left aside": count for kind, count in summary.skipped.items()},
    }
    notes = ", ".join(f"{count} {what}" for what, count in others.items() if count)
    return f"{summary.planned} images" + (f" ({notes})" if notes else "")


def speed_line(summary: RunSummary) -> str:
    """Images per second and where the time went (seconds per leg, summed over threads)."""
    if summary.bottleneck is None:
        return "nothing to label"
    legs = ", ".join(f"{leg} {seconds:.2g} s" for leg, seconds in summary.legs.items())
    speed = f"{summary.images_per_second:.1f} images/s over {summary.seconds:.1f} s"
    return f"{speed}; {summary.bottleneck} is the bottleneck ({legs})"


def cost_line(summary: RunSummary, price_per_hour: float | None) -> str | None:
    """What the labelling cost, and what a thousand images do; None without a price."""
    paid = cost(summary.seconds, price_per_hour)
    if paid is None:
        return None
    per_thousand = 1000 * paid / images if (images := sum(summary.reasons.values())) else 0.0
    return f"{paid:.2f} at {price_per_hour:g} an hour; {per_thousand:.2g} per 1,000 images"


def engine_line(settings: LabelSettings) -> str:
    """Who will label; how many workers there is room for shows when they start."""
    if settings.engine == DEFAULT_ENGINE:
        return "local: this process, on one device"
    count = (
        "as many workers as there is room for"
        if settings.workers == "auto"
        else f"{settings.workers} workers"
    )
    each = [
        f"{amount:g} {what}"
        for amount, what in ((settings.worker_gpus, "GPUs"), (settings.worker_cpus, "cores"))
        if amount is not None
    ]
    share = f", each with {' and '.join(each)}" if each else ""
    return f"{settings.engine}: {count}{share}"


def estimate_line(expected: Estimate) -> str:
    """How long a run will take, at what rate, and what it will cost."""
    if expected.seconds is None:
        return "unknown: nothing has been labelled here yet; segpipe label --limit 100 would tell"
    paid = "" if expected.cost is None else f", {expected.cost:.2f} in all"
    took = duration(expected.seconds)
    of_other = (
        ", of another model, at whose scale images may cost more or less" if expected.other_model else ""
    )
    rate = (
        f"{expected.images_per_second:.1f} images/s, {_times(expected.times_workers)} {expected.rate_of_run}"
    )
    as_many = ", and holds for as many workers as that had" if expected.times_workers is None else ""
    return f"{took} at {rate}{of_other}{as_many}{paid}"


def _times(workers: float | None) -> str:
    return "the rate of run" if workers in (None, 1) else f"for {workers:.3g} times the workers of run"


def tiling_line(tiling: Tiling) -> str:
    """How the networks saw the images."""
    height, width = tiling.tile
    return (
        f"{tiling.scale:.3g} pixels of an image to one of the networks, in tiles of at most {height}x{width} "
        "with their borders drawn below"
    )


def passes_line(passes: Passes) -> str:
    """How the networks see an image, and what that costs."""
    if passes.scale is None:
        return "one of each image, fitted to the working size"
    how = f"at {passes.scale:.3g} pixels of an image to one of the networks"
    if passes.tiles_per_image is None:
        return f"{how}; how many tiles an image is shows once some have been labelled here"
    return (
        f"{passes.tiles_per_image:.1f} tiles an image {how}, {passes.cost:.1f} times what one fitted to the "
        "working size costs, for images as they were labelled here before"
    )


def duration(seconds: float) -> str:
    """For example 42 s, 7 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def places(summary: RunSummary) -> dict[str, str]:
    """Where the run's manifest and masks are."""
    output = redact(summary.output)
    return {
        "manifest": manifests_root(output),
        "masks": storage.join(output, f"masks/{summary.model_id}"),
    }


def next_commands(summary: RunSummary, model: str) -> list[str]:
    """What to type next, given what the run left."""
    return [shlex.join(command) for command in _next(summary, redact(model))]


def _next(summary: RunSummary, model: str) -> Iterator[list[str]]:
    def query(sql: str) -> list[str]:
        return ["segpipe", "query", redact(summary.output), sql]

    if summary.reasons.get("no_policy"):
        promise_options = ["--min-iou", "0.7", "--max-bad-fraction", "0.1", "--confidence", "0.9"]
        measured_on = ["--model", model, "--data", "ROOT", "--split", "calibration"]
        yield ["segpipe", "calibrate", *measured_on, *promise_options]
    if summary.failed:
        yield query("SELECT image_uri, reason, error FROM failures")
    if summary.review:
        yield query("SELECT image_uri, mask_uri, confidence FROM review_queue ORDER BY confidence LIMIT 20")
    if summary.accepted:
        yield [*query("SELECT image_uri, mask_uri FROM accepted"), "--format", "csv"]
    yield query("SELECT * FROM runs")
