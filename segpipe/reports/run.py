"""The report of a labelling run: one self-contained page, readable on a phone, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.concurrency import Budget
from segpipe.confidence.policy import Policy
from segpipe.confidence.promise import meaning
from segpipe.errors import NotFoundError, RunError
from segpipe.images import class_palette
from segpipe.labeling.plan import RunPlan
from segpipe.labeling.run_record import load_plan
from segpipe.labeling.totals import RunSummary, summarise_run
from segpipe.manifests.policies import policy_of_run
from segpipe.manifests.query import query
from segpipe.manifests.run_files import say_if_damaged
from segpipe.manifests.store import classes_of
from segpipe.redaction import redact
from segpipe.reports import plots
from segpipe.reports import summary as words
from segpipe.reports.gallery import Gallery, Shown, class_colours, gallery_item
from segpipe.reports.page import Picture, render
from segpipe.tiles import Tiling

TEMPLATE = "run.html"
SHOWN = 12
SCORES_DRAWN = 100_000
READ_THREADS = 8
GALLERY_BYTES = 1_000_000_000

_NEWEST_RUN = "SELECT run_id FROM runs ORDER BY finished_at DESC, run_id DESC LIMIT 1"
_SCORES = """
    SELECT discriminator_score AS score, decision FROM labels
    WHERE run_id = '{run_id}' AND decision <> 'failed' AND discriminator_score IS NOT NULL
    USING SAMPLE reservoir({limit} ROWS) REPEATABLE (0)"""
_ROWS = """
    SELECT image_uri, image_etag, image_bytes, image_height, image_width, mask_uri, mask_sha256, decision,
        reason, confidence, confidence_map_uri, error
    FROM labels
    WHERE run_id = '{run_id}' AND decision = '{decision}' ORDER BY {order} LIMIT {limit}"""
# A digest of the image's name: a sample that has nothing to do with how good the mask is.
_GALLERIES = {
    "accepted": ("Accepted", "A random sample.", "md5(image_uri)"),
    "review": ("To review", "Those of the lowest confidence.", "confidence NULLS FIRST, image_uri"),
    "failed": ("Failed", "The first ones, with the reason.", "image_uri"),
}


@dataclass(frozen=True)
class RunPage:
    """What the page shows; classes are (name, CSS colour)."""

    title: str
    facts: tuple[tuple[str, str], ...]
    counts: tuple[words.DecisionCount, ...]
    pictures: tuple[Picture, ...]
    galleries: tuple[Gallery, ...]
    classes: tuple[tuple[str, str], ...]


def write_run_report(output: str, run_id: str | None, policy: Policy | None, to: str | None) -> str:
    """Write the page about a run, the newest if none is named; its URL, by default beside the run's record.

    `policy`, if known, adds promise and threshold. Raises NotFoundError (no such run), StorageError.
    """
    output = storage.normalise(output)
    run_id = _newest_run(output) if run_id is None else run_id
    plan = load_plan(output, run_id)
    if plan is None:
        raise NotFoundError(f"{redact(output)} has no run {run_id}; segpipe query ... runs lists them")
    say_if_damaged(output, run_id)
    policy = policy_of_run(output, policy, plan.policy_id)
    page = render(TEMPLATE, _page(output, summarise_run(plan), plan, policy)).encode()
    uri = storage.normalise(to) if to else storage.join(output, f"runs/{run_id}/report.html")
    storage.put(uri, page)
    return uri


def _newest_run(output: str) -> str:
    runs = query(output, _NEWEST_RUN).to_pylist()
    if not runs:
        raise RunError(f"nothing has been labelled under {redact(output)} yet")
    return str(runs[0]["run_id"])


def _page(output: str, summary: RunSummary, plan: RunPlan, policy: Policy | None) -> RunPage:
    classes = classes_of(output)
    palette = class_palette(max(len(classes), 1))
    shown = Shown(summary.source, palette, plan.image_range, plan.tiling, Budget(GALLERY_BYTES))
    return RunPage(
        title=f"{summary.accepted} accepted, {summary.review} to review, {summary.failed} failed",
        facts=tuple(_facts(summary, plan.tiling, policy)),
        counts=tuple(words.decision_counts(summary)),
        pictures=tuple(_pictures(output, summary, policy)),
        galleries=tuple(_galleries(output, summary.run_id, shown)),
        classes=class_colours(classes),
    )


def _facts(summary: RunSummary, tiling: Tiling | None, policy: Policy | None) -> Iterator[tuple[str, str]]:
    yield "run", summary.run_id
    yield "source", redact(summary.source)
    yield "model", summary.model_id
    yield "planned", words.planned_line(summary)
    if tiling is not None:
        yield "scale", words.tiling_line(tiling)
    if policy is not None:
        yield "promise", words.promise_line(policy)
        if policy.accepts_some:
            yield "meaning", meaning(policy)
    lines = {
        "policy": words.policy_line(policy),
        "suspended": words.suspension_line(summary, policy),
        "drift": words.drift_line(summary),
    }
    for name, line in lines.items():
        if line is not None:
            yield name, line
    yield "speed", words.speed_line(summary)
    yield from words.places(summary).items()


def _pictures(output: str, summary: RunSummary, policy: Policy | None) -> Iterator[Picture]:
    found = query(output, _SCORES.format(run_id=summary.run_id, limit=SCORES_DRAWN)).to_pydict()
    if found["score"]:
        accepted = np.array([decision == "accepted" for decision in found["decision"]])
        threshold = None if policy is None else policy.threshold
        yield Picture(
            "scores.png",
            "Distribution of the score",
            "How many images have which raw score, and what became of them.",
            plots.decided_scores_png(found["score"], accepted, threshold),
        )
    if summary.bottleneck is not None:
        yield Picture(
            "legs.png",
            "Where the time went",
            f"Seconds per leg, summed over threads; {summary.bottleneck} is the bottleneck.",
            plots.legs_png(summary.legs, summary.bottleneck),
        )


def _galleries(output: str, run_id: str, shown: Shown) -> Iterator[Gallery]:
    for decision, (title, caption, order) in _GALLERIES.items():
        rows = _rows(output, run_id, decision, order)
        if rows:
            show = partial(gallery_item, shown=shown)
            with ThreadPoolExecutor(READ_THREADS) as pool:
                yield Gallery(title, caption, tuple(pool.map(show, rows)))


def _rows(output: str, run_id: str, decision: str, order: str) -> list[dict[str, Any]]:
    return query(output, _ROWS.format(run_id=run_id, decision=decision, order=order, limit=SHOWN)).to_pylist()
