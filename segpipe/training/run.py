"""`segpipe train`: from a labelled data set to a model bundle in two stages, resumable after a kill."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import math
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from torch import Tensor

from segpipe import storage
from segpipe.confidence.score import SCORE_PARTS
from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, fingerprint, list_samples, open_dataset, read_sample
from segpipe.errors import RunError
from segpipe.models.bundle import (
    ModelCard,
    ModelSpec,
    build_networks,
    encode_weights,
    model_digest,
    save_bundle,
)
from segpipe.models.device import choose_device
from segpipe.models.discriminator import Adversary
from segpipe.models.generator import Generator
from segpipe.models.judge import Discriminator
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION
from segpipe.training.checkpoint import Checkpoint, delete_checkpoint, load_checkpoint, save_checkpoint
from segpipe.training.history import RoundRecord, history_csv, history_png
from segpipe.training.loop import (
    Progress,
    Training,
    progress_data,
    progress_tensors,
    restore_progress,
)
from segpipe.training.parts import Parts, split_parts
from segpipe.training.pixels import LabelledPixels, choose_working_size, load_pixels
from segpipe.training.scoring import Scoring, Teachers

Stage = Literal["adversarial", "scoring"]

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
    torch.manual_seed(settings.seed)
    generator, discriminator = (
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in build_networks(spec)
    )
    with (
        load_pixels(dataset, settings.split, spec.working_size) as labelled,
        load_pixels(dataset, settings.val_split, spec.working_size) as validation,
    ):
        work = _Work(settings, model_url, spec, labelled, split_parts(len(labelled)), device)
        progress = _play(work, (generator, discriminator.adversary), validation, checkpoint)
        generator.load_state_dict(progress.best_generator)
        discriminator.adversary.load_state_dict(progress.best_discriminator)
        judging = _judge(work, generator, discriminator, progress, checkpoint)
    card = _save(work, dataset, generator, discriminator, progress, judging)
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


@dataclass(frozen=True)
class _Work:
    """What both stages share; parts: the rows of labelled that each of them may learn from."""

    settings: TrainSettings
    model_url: str
    spec: ModelSpec
    labelled: LabelledPixels
    parts: Parts
    device: str

    def keep(self, stage: Stage, tensors: dict[str, dict[str, Tensor]], data: dict[str, Any]) -> None:
        """Put a checkpoint that `_start_or_resume` can take up."""
        known = {"settings": resumable_settings(self.settings), "stage": stage}
        save_checkpoint(self.model_url, Checkpoint(tensors, known | data))


def _play(
    work: _Work,
    networks: tuple[Generator, Adversary],
    validation: LabelledPixels,
    checkpoint: Checkpoint | None,
) -> Progress:
    """Stage 1, or what it came to when the checkpoint is of stage 2."""
    if checkpoint and checkpoint.data["stage"] == "scoring":
        return restore_progress(checkpoint)
    training = Training.begin(
        work.settings, work.spec, networks, work.labelled, work.parts.taught, validation, work.device
    )
    progress = training.restore(checkpoint) if checkpoint else training.fresh_progress()

    def keep(progress: Progress) -> None:
        made = training.checkpoint(progress)
        work.keep("adversarial", made.tensors, made.data)

    training.run(progress, keep)
    return progress


def _judge(
    work: _Work,
    generator: Generator,
    discriminator: Discriminator,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> list[RoundRecord]:
    """Stage 2."""
    discriminator.judge.adversary.load_state_dict(progress.best_discriminator)
    teachers = Teachers(
        _standing_still(generator, progress.best_generator),
        [_standing_still(generator, state) for state in progress.earlier_generators],
    )
    views = progress.epoch * len(work.parts.taught)
    scoring = Scoring.begin(
        work.settings.seed,
        work.spec,
        teachers,
        discriminator.judge,
        work.labelled,
        work.parts,
        views,
        work.device,
    )
    if checkpoint and checkpoint.data["stage"] == "scoring":
        rounds = [RoundRecord(**record) for record in checkpoint.data["rounds"]]
        scoring.restore(checkpoint.tensors, rounds)

    def keep() -> None:
        tensors = progress_tensors(progress) | scoring.tensors()
        data = progress_data(progress) | {"rounds": [asdict(record) for record in scoring.history]}
        work.keep("scoring", tensors, data)

    scoring.run(keep)
    return scoring.history


def _standing_still(generator: Generator, state: dict[str, Tensor]) -> Generator:
    """A copy with these weights that is not trained any more."""
    still = copy.deepcopy(generator)
    still.load_state_dict(state)
    return still.eval().requires_grad_(False)


def resumable_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings that a resumed training must share with the stopped one."""
    kept = settings.model_dump(mode="json", exclude={"resume", "model", "device"})
    return kept | {"data": storage.normalise(settings.data)}


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
    if "stage" not in checkpoint.data:
        raise RunError(f"{model_url} holds a checkpoint of an older segpipe: train into another folder")
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
    work: _Work,
    dataset: Dataset,
    generator: Generator,
    discriminator: Discriminator,
    progress: Progress,
    judging: list[RoundRecord],
) -> ModelCard:
    settings, spec, model_url = work.settings, work.spec, work.model_url
    weights = encode_weights(generator), encode_weights(discriminator)
    best = next(record for record in progress.history if record.epoch == progress.best_epoch)
    card = ModelCard(
        model_id=model_digest(spec, *weights),
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
