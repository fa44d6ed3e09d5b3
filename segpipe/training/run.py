"""`segpipe train`: from a labelled data set to a model bundle, resumable after a kill."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from segpipe import storage
from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, fingerprint, list_samples, open_dataset, read_sample
from segpipe.errors import RunError
from segpipe.models.bundle import ModelCard, ModelSpec, encode_weights, model_digest, save_bundle
from segpipe.models.device import choose_device
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION
from segpipe.training.checkpoint import Checkpoint, delete_checkpoint, load_checkpoint, save_checkpoint
from segpipe.training.history import history_csv, history_png
from segpipe.training.loop import Progress, Training, resumable_settings
from segpipe.training.pixels import choose_working_size, load_pixels

logger = logging.getLogger(__name__)

SIZES_LOOKED_AT = 64


@dataclass(frozen=True)
class TrainResult:
    """Where the model is and how good it is on the validation split."""

    model: str
    model_id: str
    epochs: int
    best_epoch: int
    mean_iou: float
    pixel_accuracy: float
    seconds: float


def train(settings: TrainSettings) -> TrainResult:
    """Train a generator and its discriminator and write the bundle.

    Raises DatasetError, RunError (a model is there already, or --resume does not fit), StorageError.
    """
    started = time.monotonic()
    model_url = storage.normalise(settings.model)
    checkpoint = _start_or_resume(settings, model_url)
    dataset = open_dataset(settings.data)
    spec = _make_spec(settings, dataset)
    device = choose_device(settings.device)
    with (
        load_pixels(dataset, settings.split, spec.working_size) as labelled,
        load_pixels(dataset, settings.val_split, spec.working_size) as validation,
    ):
        training = Training.begin(settings, spec, labelled, validation, device)
        progress = training.restore(checkpoint) if checkpoint else training.fresh_progress()
        training.run(progress, lambda state: save_checkpoint(model_url, training.checkpoint(state)))
    card = _save(settings, spec, dataset, training, progress, model_url)
    delete_checkpoint(model_url)
    return TrainResult(
        model_url,
        card.model_id,
        progress.epoch,
        progress.best_epoch,
        card.metrics["mean_iou"],
        card.metrics["pixel_accuracy"],
        time.monotonic() - started,
    )


def _start_or_resume(settings: TrainSettings, model_url: str) -> Checkpoint | None:
    if storage.exists(storage.join(model_url, "model.json")):
        raise RunError(f"{model_url} holds a finished model: train into another folder")
    checkpoint = load_checkpoint(model_url)
    if checkpoint is None:
        if settings.resume:
            logger.info("nothing to resume at %s: starting anew", model_url)
        return None
    if not settings.resume:
        raise RunError(
            f"{model_url} holds an unfinished training: add --resume, or train into another folder"
        )
    asked, kept = resumable_settings(settings), checkpoint.data["settings"]
    changed = sorted(name for name in asked if asked[name] != kept.get(name))
    if changed:
        raise RunError(
            f"cannot resume {model_url}: {', '.join(changed)} differ from the stopped training; "
            "give the same options, or train into another folder"
        )
    return checkpoint


def _make_spec(settings: TrainSettings, dataset: Dataset) -> ModelSpec:
    return ModelSpec(
        architecture=settings.architecture,
        classes=dataset.classes,
        ignore_index=dataset.ignore_index,
        working_size=_working_size(settings, dataset),
        mean=MEAN,
        standard_deviation=STANDARD_DEVIATION,
        shown_masks="soft" if settings.objective == "adversarial" else "hard",
    )


def _working_size(settings: TrainSettings, dataset: Dataset) -> tuple[int, int]:
    if settings.image_size is not None:
        height, width = (int(side) for side in settings.image_size.split("x"))
        # Every stage of the networks halves the image, five times in all.
        return max(32, round(height / 32) * 32), max(32, round(width / 32) * 32)
    samples = list_samples(dataset, settings.split)
    step = math.ceil(len(samples) / SIZES_LOOKED_AT)
    return choose_working_size([read_sample(dataset, sample)[1].shape for sample in samples[::step]])


def _save(
    settings: TrainSettings,
    spec: ModelSpec,
    dataset: Dataset,
    training: Training,
    progress: Progress,
    model_url: str,
) -> ModelCard:
    training.players.generator.load_state_dict(progress.best_generator)
    training.players.discriminator.load_state_dict(progress.best_discriminator)
    generator, discriminator = map(
        encode_weights, (training.players.generator, training.players.discriminator)
    )
    best = next(record for record in progress.history if record.epoch == progress.best_epoch)
    card = ModelCard(
        model_id=model_digest(spec, generator, discriminator),
        spec=spec,
        training_data={
            "name": dataset.name,
            "split": settings.split,
            "fingerprint": fingerprint(dataset, settings.split),
            "validation_fingerprint": fingerprint(dataset, settings.val_split),
        },
        training_settings=settings.model_dump(mode="json", exclude={"data", "model", "resume"}),
        metrics={
            "split": settings.val_split,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "mean_iou": best.validation_mean_iou,
            "pixel_accuracy": best.validation_pixel_accuracy,
        },
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.put(storage.join(model_url, "history.csv"), history_csv(progress.history))
    storage.put(storage.join(model_url, "curves.png"), history_png(progress.history))
    save_bundle(model_url, card, generator, discriminator)
    return card


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("segpipe", "torch", "numpy", "pillow")}
    return {"python": platform.python_version(), **packages}
