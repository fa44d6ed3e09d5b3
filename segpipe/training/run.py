"""`segpipe train`: from a labelled data set to a model bundle."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from segpipe import storage
from segpipe.confidence.score import SCORE_PARTS
from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, fingerprint, list_samples, open_dataset, read_sample
from segpipe.digests import shown
from segpipe.models.bundle import (
    ModelCard,
    ModelSpec,
    build_networks,
    encode_weights,
    model_digest,
    save_bundle,
)
from segpipe.models.device import choose_device
from segpipe.models.generator import Generator
from segpipe.models.judge import Discriminator
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION
from segpipe.training.checkpoint import Checkpoint, delete_checkpoint
from segpipe.training.corrections import FILE as CORRECTIONS
from segpipe.training.corrections import (
    Correction,
    find_corrections,
    from_json,
    read_correction,
    to_json,
    weights,
)
from segpipe.training.gan_loop import Progress
from segpipe.training.history import RoundRecord, history_csv, history_png
from segpipe.training.holdout import split_parts, with_corrections
from segpipe.training.labelled_pixels import Read, choose_working_size, load_pixels, load_split, reads_of
from segpipe.training.learnt_images import keep_seen
from segpipe.training.resuming import start_or_resume
from segpipe.training.stages import Work, judge, play

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
    checkpoint = start_or_resume(settings, model_url)
    dataset = open_dataset(settings.data)
    corrections = _corrections(settings, model_url, dataset, checkpoint)
    reads: list[Read] = [
        *reads_of(dataset, settings.split),
        *(partial(read_correction, correction, dataset) for correction in corrections),
    ]
    n_labelled = len(reads) - len(corrections)
    parts = with_corrections(split_parts(n_labelled), n_labelled, len(corrections))
    spec = _make_spec(settings, dataset)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    generator, discriminator = (
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in build_networks(spec)
    )
    with (
        load_pixels(reads, [1.0] * n_labelled + weights(corrections), spec.working_size) as labelled,
        load_split(dataset, settings.val_split, spec.working_size) as validation,
    ):
        work = Work(settings, model_url, spec, labelled, parts, device)
        progress = play(work, (generator, discriminator.adversary), validation, checkpoint)
        generator.load_state_dict(progress.best_generator)
        discriminator.adversary.load_state_dict(progress.best_discriminator)
        judging = judge(work, generator, discriminator, progress, checkpoint)
    keep_seen(model_url, reads)
    card = _save(work, dataset, corrections, generator, discriminator, progress, judging)
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


def _corrections(
    settings: TrainSettings, model_url: str, dataset: Dataset, checkpoint: Checkpoint | None
) -> list[Correction]:
    """What people corrected: as it was when this training began."""
    if not settings.corrections:
        return []
    uri = storage.join(model_url, CORRECTIONS)
    if checkpoint is not None:
        return from_json(storage.read_bytes(uri))
    found = find_corrections(settings.corrections, dataset)
    storage.put(uri, to_json(found))
    return found


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
    work: Work,
    dataset: Dataset,
    corrections: list[Correction],
    generator: Generator,
    discriminator: Discriminator,
    progress: Progress,
    judging: list[RoundRecord],
) -> ModelCard:
    settings, spec, model_url = work.settings, work.spec, work.model_url
    weights = encode_weights(generator), encode_weights(discriminator)
    best = next(record for record in progress.history if record.epoch == progress.best_epoch)
    digest = model_digest(spec, *weights)
    card = ModelCard(
        model_id=shown(digest),
        digest=digest,
        spec=spec,
        training_data={
            "name": dataset.name,
            "split": settings.split,
            "fingerprint": fingerprint(dataset, settings.split),
            "validation_fingerprint": fingerprint(dataset, settings.val_split),
            "corrections": str(len(corrections)),
        },
        training_settings=settings.model_dump(mode="json", exclude={"data", "model", "resume"}),
        metrics={
            "split": settings.val_split,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "mean_iou": best.validation_mean_iou,
            "pixel_accuracy": best.validation_pixel_accuracy,
            "score_combination": _combination(discriminator),
        },
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.put(storage.join(model_url, "history.csv"), history_csv(progress.history))
    storage.put(storage.join(model_url, "judging.csv"), history_csv(judging))
    storage.put(storage.join(model_url, "curves.png"), history_png(progress.history, judging))
    save_bundle(model_url, card, *weights)
    return card


def _combination(discriminator: Discriminator) -> dict[str, float]:
    return dict(zip(("bias", *SCORE_PARTS), discriminator.judge.combination.tolist(), strict=True))


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("segpipe", "torch", "numpy", "pillow")}
    return {"python": platform.python_version(), **packages}
