"""What a labelling run leaves on its page in Prefect: summary, counts, and the images to look at first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from segpipe.config import LabelSettings
from segpipe.labeling.totals import RunSummary, WorstImage
from segpipe.manifests.policies import policy_of_run
from segpipe.models.labeler import Labeler
from segpipe.printable import markdown, markdown_block, markdown_code, markdown_link
from segpipe.redaction import redact
from segpipe.reports import summary as words


def publish_page(summary: RunSummary, labeler: Labeler, model: str, settings: LabelSettings) -> None:
    """Put the run's artifacts on its page. Raises httpx.HTTPError."""
    create_markdown_artifact(
        summary_markdown(summary, labeler, model, settings.price_per_hour),
        key="label-summary",
        description=f"What run {summary.run_id} labelled, and what it promises",
    )
    create_table_artifact(
        [asdict(count) for count in words.decision_counts(summary)],
        key="label-decisions",
        description=f"Images per decision and reason in run {summary.run_id}",
    )
    if summary.worst:
        create_table_artifact(
            [worst_row(image) for image in summary.worst],
            key="label-worst",
            description="Look at these first: failed images, then those of the lowest confidence",
        )


def summary_markdown(summary: RunSummary, labeler: Labeler, model: str, price_per_hour: float | None) -> str:
    """The run's page: counts, promise, speed, cost, places and what to type next."""
    counts = [
        f"| {count.decision} | {count.reason} | {count.images} | {count.share:.1%} |"
        for count in words.decision_counts(summary)
    ]
    policy = policy_of_run(summary.output, labeler.policy, summary.policy_id)
    facts = {
        "Source": redact(summary.source),
        "Planned": words.planned_line(summary),
        "Promise": words.promise_line(policy),
        "Policy": words.policy_line(policy),
        "Audit": words.suspension_line(summary, policy),
        "Drift": words.drift_line(summary),
        "Speed": words.speed_line(summary),
        "Cost": words.cost_line(summary, price_per_hour),
    }
    places = words.places(summary).items()
    lines = [
        f"# {summary.accepted} accepted, {summary.review} to review, {summary.failed} failed",
        "",
        "| decision | reason | images | share |",
        "|---|---|---:|---:|",
        *counts,
        "",
        *(f"- **{name}**: {markdown(fact)}" for name, fact in facts.items() if fact is not None),
        *(f"- **{place.capitalize()}**: {markdown_code(uri)}" for place, uri in places),
        "",
        *markdown_block(words.next_commands(summary, model)),
    ]
    return "\n".join(lines)


def worst_row(image: WorstImage) -> dict[str, Any]:
    """One line of the table; links where a browser can follow them."""
    return {
        "decision": image.decision,
        "reason": image.reason,
        "confidence": None if image.confidence is None else round(image.confidence, 3),
        "image": _link(image.image_uri),
        "mask": None if image.mask_uri is None else _link(image.mask_uri),
        "error": None if image.error is None else markdown(image.error),
    }


def _link(uri: str) -> str:
    shown = redact(uri)
    return markdown_link(shown) if shown.startswith(("http://", "https://")) else markdown(shown)
