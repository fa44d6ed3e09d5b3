"""The flow that labels what is new in a bucket: plan, label, publish.

A retried task, or a flow run retried from the Prefect UI, resumes the same labelling run: its id is made of
the flow run's id, the plan is frozen under it, and a shard whose part exists is not labelled again.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import httpx
from prefect import State, Task, flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from flows.events import send_drifted
from flows.run_log import library_log, progress_artifact, without_secrets
from flows.run_page import publish_page
from segpipe.config import LabelSettings
from segpipe.errors import AddressError, DeviceError, NotFoundError, RunError, SegpipeError, StorageError
from segpipe.labeling.engines.work import ServedModel
from segpipe.labeling.giving_up import require_few_failures
from segpipe.labeling.plan import RunPlan
from segpipe.labeling.run import finish_run, label_run, start_run
from segpipe.labeling.totals import RunSummary
from segpipe.models.labeler import Labeler
from segpipe.models.promotion_line import resolve
from segpipe.models.served import load_for_run, load_planned
from segpipe.redaction import redact

RETRIES = 3
FIRST_DELAY_SECONDS = 10
RESUMABLE: dict[str, Any] = {
    "retries": RETRIES + 1,
    "retry_delay_seconds": exponential_backoff(FIRST_DELAY_SECONDS),
    # The model and the plan live in memory: Prefect is to hash neither for a cache, nor to store them.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def tries_left(_task: Task, task_run: TaskRun, _state: State) -> bool:
    """Whether the task may run again; counted here, because at its own limit Prefect logs a traceback."""
    return task_run.run_count <= RETRIES


def may_recover(failed: Task, task_run: TaskRun, state: State) -> bool:
    """Whether trying again can help: storage or server can recover, a missing bucket does not appear."""
    transient = isinstance(state.data, StorageError | httpx.HTTPError)
    lasting = isinstance(state.data, NotFoundError | AddressError)
    return transient and not lasting and tries_left(failed, task_run, state)


@task(name="plan", retry_condition_fn=may_recover, **RESUMABLE)
def plan_images(
    source: str, output: str, labeler: Labeler, settings: LabelSettings, run_id: str, limit: int | None
) -> RunPlan:
    """List the source and freeze which images this run labels, or take up the plan frozen before."""
    with library_log(), without_secrets():
        return start_run(source, output, labeler, settings, run_id, limit)


def may_go_on(failed: Task, task_run: TaskRun, state: State) -> bool:
    """Whether another try can help: it costs at most one shard, since it goes on behind the parts there are.

    A device that has failed works again in a new process only.
    """
    return not isinstance(state.data, DeviceError) and tries_left(failed, task_run, state)


@task(name="label", retry_condition_fn=may_go_on, **RESUMABLE)
def label_images(plan: RunPlan, labeler: Labeler, settings: LabelSettings, served: ServedModel) -> None:
    """Label the planned images that have no row yet; one manifest part per shard."""
    with library_log(), without_secrets():
        label_run(plan, labeler, settings, progress_artifact, served)


@task(name="publish", retry_condition_fn=may_recover, **RESUMABLE)
def publish(plan: RunPlan, labeler: Labeler, model: str, settings: LabelSettings) -> RunSummary:
    """Sum the run up from its manifest parts, in run.json and on the run's page."""
    with library_log(), without_secrets():
        summary = finish_run(plan)
        publish_page(summary, labeler, model, settings)
        if "drift" in summary.reasons:
            _tell_of_drift(summary)
    return summary


def _tell_of_drift(summary: RunSummary) -> None:
    """An event, which is an alarm where alarms are registered."""
    with get_client(sync_client=True) as client:
        send_drifted(client, runtime.flow_run.id, runtime.flow_run.name, summary)


def run_name() -> str:
    """What the run labels and when it was due, for example: label s3://bucket/images 2026-03-01."""
    due = runtime.flow_run.scheduled_start_time
    return f"label {redact(runtime.flow_run.parameters['source'])} {due:%Y-%m-%d}"


@flow(name="label", flow_run_name=run_name)
def label(
    source: str, output: str, model: str, limit: int | None = None, settings: LabelSettings = LabelSettings()
) -> dict[str, Any] | State:
    """Label what is new under a folder or bucket: a mask, a confidence and a decision for every image.

    Args:
        source: Images to label: a folder or bucket at any fsspec URL, for example s3://bucket/images.
        output: Where masks and manifest go: a folder at any fsspec URL.
        model: Model bundle to label with: a folder at any fsspec URL; its policy decides what is accepted.
        limit: Label at most this many images; empty: all that are new.
        settings: How the work is done; the defaults suit most buckets.

    Returns:
        The run's summary: run_id, planned, accepted, review, failed, seconds, images_per_second, legs, more.
        The run has failed when too large a share of its images has; what it labelled is kept.
    """
    try:
        with library_log(), without_secrets():
            served = ServedModel(resolve(model), load_planned)
            labeler = load_for_run(served.url, settings)
        plan = plan_images(source, output, labeler, settings, f"flow-{runtime.flow_run.id}", limit)
        label_images(plan, labeler, settings, served)
        summary = publish(plan, labeler, model, settings)
    except SegpipeError as error:
        return Failed(message=redact(str(error)))
    return judged(summary, settings)


def judged(summary: RunSummary, settings: LabelSettings) -> dict[str, Any] | State:
    """The finished run's summary, or Failed where too large a share of its images has."""
    try:
        require_few_failures(summary, settings.max_failure_rate)
    except RunError as error:
        # The labelling run is over, and a retry would take up that very run.
        return Failed(
            message=f"{redact(str(error))}; Retry on this page only says so again: start a new run, with "
            "retry in its settings for other reasons than storage"
        )
    return asdict(summary)
