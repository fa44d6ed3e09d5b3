"""The flow that turns a labelled data set into a model bundle and, if asked, certifies its threshold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import State, Task, flow, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from flows.run_log import library_log, without_secrets
from segpipe.confidence.policy import Policy
from segpipe.config import AdoptSettings, CalibrateSettings, TrainSettings
from segpipe.errors import AddressError, NotFoundError, RunError, SegpipeError, StorageError
from segpipe.evaluation.calibration import calibrate as calibrate_model
from segpipe.printable import markdown, markdown_code
from segpipe.redaction import redact
from segpipe.reports.summary import promise_line
from segpipe.storage import normalise
from segpipe.training.adopt import AdoptResult
from segpipe.training.adopt import adopt as adopt_model
from segpipe.training.run import TrainResult
from segpipe.training.run import train as train_model

RETRIES = 3
RETRY_DELAY_SECONDS = 30
OPTIONS: dict[str, Any] = {"retry_delay_seconds": RETRY_DELAY_SECONDS, "cache_policy": NO_CACHE}


def storage_may_recover(_task: Task, task_run: TaskRun, state: State) -> bool:
    """Whether trying again can help: storage may recover; wrong data or settings stay wrong."""
    transient = isinstance(state.data, StorageError) and not isinstance(
        state.data, NotFoundError | AddressError
    )
    return transient and task_run.run_count <= RETRIES


@task(name="train", retries=RETRIES + 1, retry_condition_fn=storage_may_recover, **OPTIONS)
def train_networks(settings: TrainSettings) -> TrainResult:
    """Train; a retry of the task or of the flow run goes on from the last checkpoint."""
    again = runtime.task_run.run_count > 1 or runtime.flow_run.run_count > 1
    with library_log(), without_secrets():
        return train_model(settings.model_copy(update={"resume": settings.resume or again}))


@task(name="adopt", retries=RETRIES + 1, retry_condition_fn=storage_may_recover, **OPTIONS)
def adopt_network(settings: AdoptSettings) -> AdoptResult:
    """Teach a judge a network that was trained elsewhere; a retry begins anew."""
    with library_log(), without_secrets():
        return adopt_model(settings)


@task(name="calibrate", retries=RETRIES + 1, retry_condition_fn=storage_may_recover, **OPTIONS)
def certify(settings: CalibrateSettings) -> Policy:
    """Find the threshold that keeps the promise."""
    with library_log(), without_secrets():
        return calibrate_model(settings)


def result_markdown(result: TrainResult | AdoptResult, policy: Policy | None) -> str:
    """The run's page: where the model is, how good, and what it promises."""
    measured_on = "validation split" if isinstance(result, TrainResult) else "split that taught the judge"
    lines = [
        f"# Mean IoU {result.mean_iou:.3f} on the {measured_on}",
        "",
        f"- **Model**: {markdown_code(result.model)}, id `{result.model_id}`",
        f"- **Pixel accuracy**: {result.pixel_accuracy:.3f}",
        _how_it_was_made(result),
        f"- **Time**: {result.seconds:.0f} s",
        f"- **Promise**: {markdown(promise_line(policy))}",
        *(
            f"- **Warning**: {markdown(line)}"
            for line in (*result.warnings, *(policy.warnings if policy else ()))
        ),
    ]
    return redact("\n".join(lines))


def _how_it_was_made(result: TrainResult | AdoptResult) -> str:
    if isinstance(result, TrainResult):
        return f"- **Epochs**: {result.epochs}, the best was {result.best_epoch}"
    return f"- **Adopted**: the judge has learnt on {result.images} images"


def run_name() -> str:
    """What the run makes, for example: train s3://models/streets."""
    settings = _settings_of_run()
    return f"{'adopt' if 'path' in settings else 'train'} {redact(str(settings['model']))}"


def _settings_of_run() -> dict[str, Any]:
    settings = runtime.flow_run.parameters["settings"]
    return settings.model_dump() if isinstance(settings, TrainSettings | AdoptSettings) else settings


@flow(name="train", flow_run_name=run_name)
def train(
    settings: TrainSettings | AdoptSettings, calibration: CalibrateSettings | None = None
) -> dict[str, Any] | State:
    """Train a model bundle and, if calibration is given, certify the threshold of its promise.

    Args:
        settings: The labelled data set, where the model goes, and how to train; with a path, the network
            there is adopted as it is.
        calibration: The promise to certify on images that training has not seen; empty: none, and then all
            masks of the model go to review.

    Returns:
        model, model_id, mean_iou, pixel_accuracy, seconds, warnings; of a training epochs and best_epoch, of
        a network that was adopted images.
    """
    try:
        _require_same_model(settings, calibration)
        result = _made(settings)
        policy = None if calibration is None else certify(calibration)
    except SegpipeError as error:
        return Failed(message=redact(str(error)))
    create_markdown_artifact(
        result_markdown(result, policy), key="train-result", description="How good the trained model is"
    )
    return asdict(result)


def _made(settings: TrainSettings | AdoptSettings) -> TrainResult | AdoptResult:
    return adopt_network(settings) if isinstance(settings, AdoptSettings) else train_networks(settings)


def _require_same_model(
    settings: TrainSettings | AdoptSettings, calibration: CalibrateSettings | None
) -> None:
    if calibration is not None and normalise(calibration.model) != normalise(settings.model):
        raise RunError(
            f"calibration names model {calibration.model}: give the one to train, {settings.model}"
        )
