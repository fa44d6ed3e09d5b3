"""The flow that exchanges masks and decisions with Label Studio, for every output of the sources file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from prefect import State, flow, get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed
from pydantic import ValidationError

from flows.run_log import library_log, without_secrets
from segpipe.config import PushSettings, QueueSettings
from segpipe.errors import NotFoundError, RunError, SegpipeError
from segpipe.printable import markdown_cells, printable
from segpipe.redaction import redact
from segpipe.review.label_studio import LabelStudio, open_label_studio
from segpipe.review.pull import PullSummary, pull
from segpipe.review.push import PushSummary, push
from segpipe.sources.sources_file import find_sources, read_sources
from segpipe.validation import first_problem

SECRET_BLOCK = "label-studio-token"  # noqa: S105 - the name of the block, not the token


@dataclass(frozen=True)
class Exchanged:
    """What went to and fro for one output, or why nothing could."""

    output: str
    project: str
    pulled: PullSummary | None = None
    pushed: PushSummary | None = None
    error: str | None = None


@task(name="exchange", cache_policy=NO_CACHE)
def exchange(output: str, address: str, storage: str, limit: int) -> Exchanged:
    """Bring the decisions of one output, and then send what still waits for one."""
    project = project_of(output)
    try:
        settings = PushSettings.model_validate({"project": project, "storage": storage})
        chosen = QueueSettings(limit=limit)
        with library_log(), without_secrets(), open_label_studio(address, token()) as server:
            pulled = _pulled(output, project, server)
            pushed = push(output, settings, chosen, server)
        return Exchanged(redact(output), project, pulled, pushed)
    except NotFoundError:
        return Exchanged(redact(output), project)  # nothing is labelled there yet
    except SegpipeError as error:
        return Exchanged(redact(output), project, error=redact(str(error)))
    except ValidationError as error:
        reason = f"{first_problem(error)}; correct the flow's parameters"
        return Exchanged(redact(output), project, error=reason)


def _pulled(output: str, project: str, server: LabelStudio) -> PullSummary | None:
    return pull(output, project, server) if server.projects(project) else None


def project_of(output: str) -> str:
    """The name of the output's project: the end of its URL, and a digest that tells it from others."""
    digest = hashlib.sha256(output.encode()).hexdigest()[:8]
    return f"{printable(redact(output))[-38:].strip()} {digest}"


def token() -> str:
    """From the Secret block label-studio-token, or from LABEL_STUDIO_API_KEY. Raises RunError for none."""
    if value := os.environ.get("LABEL_STUDIO_API_KEY"):
        return value
    try:
        block = Secret.load(SECRET_BLOCK)
    except ValueError as error:
        raise RunError(
            f"no token for Label Studio: create the Prefect Secret block {SECRET_BLOCK} or set "
            "LABEL_STUDIO_API_KEY for the worker"
        ) from error
    assert isinstance(block, Secret)  # a coroutine only where an event loop runs
    return str(block.get())


def run_name() -> str:
    """For example: review all outputs 2026-03-01 14:30."""
    return f"review all outputs {runtime.flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="review", flow_run_name=run_name)
def sync(
    label_studio: str = "",
    sources: str | None = None,
    outputs: list[str] | None = None,
    storage: str = "presigned",
    limit: int = 100,
) -> State | dict[str, Any]:
    """Pull what people have decided, push what waits for them; one bad output does not stop the others.

    Args:
        label_studio: Address of the server, for example http://studio:8080; empty: there is nothing to do.
        sources: The sources file, any fsspec URL, whose outputs are exchanged.
        outputs: More outputs, any fsspec URLs.
        storage: How browsers get images: presigned links to the bucket, or s3 through Label Studio.
        limit: Masks that wait in a project's queue at most, per run.

    Returns:
        The sums of what was pulled and pushed.
    """
    if not label_studio:
        get_run_logger().info(
            "nothing to do: label_studio is empty; set SEGPIPE_LABEL_STUDIO and deploy again"
        )
        return {"outputs": 0}
    try:
        token()  # without one no output can be exchanged: said once
        with library_log(), without_secrets():
            chosen = _outputs(sources, outputs or [])
    except SegpipeError as error:
        return Failed(message=redact(str(error)))
    exchanged = [exchange(output, label_studio, storage, limit) for output in chosen]
    create_table_artifact(
        [markdown_cells(table_row(one)) for one in exchanged],
        key="review-exchanged",
        description="Decisions that came back, and masks that went out",
    )
    if problems := [f"{one.output}: {one.error}" for one in exchanged if one.error]:
        return Failed(message="; ".join(problems))
    return totals(exchanged)


def _outputs(sources: str | None, more: Iterable[str]) -> list[str]:
    """Each output once, in order."""
    found, problems = find_sources(read_sources(sources)) if sources else ([], [])
    for problem in problems:
        get_run_logger().warning("not exchanged: %s: %s", redact(problem.where), redact(problem.message))
    return list(dict.fromkeys([*(source.output for source in found), *more]))


def table_row(one: Exchanged) -> dict[str, Any]:
    """One output as a row of the run's table; the log names what was refused or left out."""
    pulled = {} if one.pulled is None else _counts(one.pulled)
    pushed = {} if one.pushed is None else _counts(one.pushed)
    problem = {"error": one.error} if one.error else {}
    return {"output": one.output, "project": one.project} | pulled | pushed | problem


def _counts(summary: PullSummary | PushSummary) -> dict[str, Any]:
    return {name: value for name, value in asdict(summary).items() if not isinstance(value, dict)}


def totals(exchanged: Iterable[Exchanged]) -> dict[str, int]:
    """Over all outputs: new decisions of each kind, and masks pushed."""
    done = list(exchanged)
    kinds = ("accepted", "corrected", "rejected", "skipped")
    pulled = {kind: sum(getattr(one.pulled, kind) for one in done if one.pulled) for kind in kinds}
    return {"outputs": len(done), "pushed": sum(one.pushed.pushed for one in done if one.pushed)} | pulled
