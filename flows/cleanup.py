"""The flow that keeps a long-lived installation small: old flow runs, and what abandoned runs have left.

Manifests, masks and every run that can go on stay: see segpipe/labeling/leftovers.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect import State, flow, get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.states import Failed

from flows.run_log import library_log
from segpipe.errors import SegpipeError
from segpipe.labeling.leftovers import Removed, remove_leftovers
from segpipe.printable import markdown_cells
from segpipe.redaction import redact
from segpipe.sources.sources_file import find_sources, read_sources

PAGE = 50  # the server deletes no more at once
KEEP_RUNS_DAYS = 30
ABANDONED_DAYS = 14
MAX_DELETED = 20_000  # some 3 minutes; what is left goes next time


@dataclass(frozen=True)
class CleanedOutput:
    """What was removed from one output, or why nothing could be."""

    output: str
    removed: Removed | None
    error: str | None


@task(name="delete-old-flow-runs", retries=2, retry_delay_seconds=30)
def delete_old_flow_runs(older_than_days: int, at_most: int) -> int:
    """Delete flow runs that ended longer ago, with their logs; how many."""
    with library_log():
        ended_before = datetime.now(UTC) - timedelta(days=older_than_days)
        return sum(deleted_pages(ended_before, at_most))


def deleted_pages(ended_before: datetime, at_most: int) -> Iterator[int]:
    """Delete finished flow runs page by page until none or `at_most` are gone; how many each time."""
    chosen = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(TERMINAL_STATES))),
        end_time=FlowRunFilterEndTime(before_=ended_before),
    ).model_dump(mode="json", exclude_unset=True)
    with get_client(sync_client=True) as client:
        while at_most > 0:
            page = {"flow_runs": chosen, "limit": min(PAGE, at_most)}
            # The client has no method for this path of the server.
            answer = client.request("POST", "/flow_runs/bulk_delete", json=page)  # type: ignore[arg-type]
            deleted = len(answer.raise_for_status().json()["deleted"])
            if not deleted:
                return
            yield deleted
            at_most -= deleted


@task(name="remove-leftovers")
def clean_outputs(outputs: Iterable[str], older_than_days: int) -> list[CleanedOutput]:
    """Remove the leftovers of abandoned runs; an output that cannot be reached does not stop the others."""
    with library_log():
        return [_clean_output(output, timedelta(days=older_than_days)) for output in outputs]


def _clean_output(output: str, older_than: timedelta) -> CleanedOutput:
    try:
        return CleanedOutput(output, remove_leftovers(output, older_than, datetime.now(UTC)), None)
    except SegpipeError as error:
        return CleanedOutput(output, None, redact(str(error)))


def table_row(cleaned: CleanedOutput) -> dict[str, Any]:
    """One output as a row of the run's table."""
    if cleaned.removed is None:
        return {"output": redact(cleaned.output), "error": cleaned.error}
    return {
        "output": redact(cleaned.output),
        "abandoned runs": ", ".join(cleaned.removed.runs),
        "old claims": cleaned.removed.claims,
        "unfinished files": cleaned.removed.unfinished_files,
        "damaged plans, left": ", ".join(cleaned.removed.damaged),
    }


def run_name() -> str:
    """For example: clean up all outputs 2026-03-01."""
    return f"clean up all outputs {runtime.flow_run.scheduled_start_time:%Y-%m-%d}"


@flow(name="cleanup", flow_run_name=run_name)
def cleanup(
    sources: str | None = None,
    outputs: list[str] | None = None,
    keep_flow_runs_days: int = KEEP_RUNS_DAYS,
    abandoned_after_days: int = ABANDONED_DAYS,
    at_most_flow_runs: int = MAX_DELETED,
) -> State | dict[str, Any]:
    """Delete old flow runs and the leftovers of abandoned labelling runs; never a manifest or a mask.

    Args:
        sources: The sources file, any fsspec URL, whose outputs are cleaned; empty: only `outputs`.
        outputs: More outputs to clean, any fsspec URLs.
        keep_flow_runs_days: Days that a finished flow run stays on the Prefect server.
        abandoned_after_days: Days after which a labelling run that has committed nothing counts as abandoned.
        at_most_flow_runs: Flow runs deleted at most, so that the first clean-up does not take all night.

    Returns:
        flow_runs and outputs: how many flow runs were deleted and how many outputs cleaned.
    """
    problems, deleted = [], 0
    try:
        deleted = delete_old_flow_runs(keep_flow_runs_days, at_most_flow_runs)
    except httpx.HTTPError as error:
        problems.append(f"the Prefect server did not delete old flow runs: {redact(str(error))}")
    cleaned = []
    try:
        cleaned = clean_outputs(_all_outputs(sources, outputs or []), abandoned_after_days)
    except SegpipeError as error:
        problems.append(redact(str(error)))
    create_table_artifact(
        [
            {"output": "Prefect server", "flow runs": deleted},
            *(markdown_cells(table_row(one)) for one in cleaned),
        ],
        key="cleanup-removed",
        description="What the clean-up removed",
    )
    problems += [f"{redact(one.output)}: {one.error}" for one in cleaned if one.error]
    if problems:
        return Failed(message="; ".join(problems))
    return {"flow_runs": deleted, "outputs": len(cleaned)}


def _all_outputs(sources: str | None, outputs: list[str]) -> list[str]:
    """Each output once, in order."""
    return list(dict.fromkeys([*(_outputs_of(sources) if sources else ()), *outputs]))


def _outputs_of(sources: str) -> list[str]:
    found, problems = find_sources(read_sources(sources))
    for problem in problems:
        get_run_logger().warning("not cleaned: %s: %s", redact(problem.where), redact(problem.message))
    return [source.output for source in found]
