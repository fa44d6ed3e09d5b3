"""`segpipe train`: from a labelled data set to a model bundle."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from segpipe import storage
from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, fingerprint, list_samples, open_dataset
from segpipe.digests import shown
from segpipe.images import pixel_digest
from segpipe.inspection.checks import copies, require_apart, require_usable, say, warnings_of
from segpipe.inspection.facts import SplitFacts, look_through
from segpipe.inspection.object_sample import look_at_objects
from segpipe.models.bundle import ModelCard, encode_weights, model_digest, save_bundle
from segpipe.training.beginning import Beginning, begin, read_generator, stored
from segpipe.training.checkpoint import Checkpoint, delete_checkpoint
from segpipe.training.corrections import FILE as CORRECTIONS
from segpipe.training.corrections import (
    Correction,
    find_corrections,
    from_json,
    open_correction,
    to_json,
    weights,
)
from segpipe.training.gan_loop import Progress
from segpipe.training.history import EpochRecord, RoundRecord, history_csv, history_png
from segpipe.training.holdout import split_parts, with_corrections
from segpipe.training.labelled_pixels import Read, load_pixels, load_samples, reads_of
from segpipe.training.learning_groups import groups_of, learning_groups, shared_groups_line
from segpipe.training.learnt_images import keep_seen
from segpipe.training.processes import Processes, all_processes
from segpipe.training.provenance import score_combination, versions
from segpipe.training.resuming import as_begun, require_same_generator, start_or_resume
from segpipe.training.stages import Work, judge, play

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where the model is, how good it is on the validation split, what is odd about the data set."""

    model: str
    model_id: str
    epochs: int
    best_epoch: int
    mean_iou: float
    pixel_accuracy: float
    seconds: float
    warnings: tuple[str, ...] = ()


def train(settings: TrainSettings) -> TrainResult:
    """Train a generator and its discriminator and write the bundle.

    Raises DatasetError (also for what inspection.checks refuses), ModelError (a --generator that cannot be
    trained on), RunError (a model is there already, --resume does not fit, or one GPU is named for several
    processes), StorageError.
    """
    with all_processes(settings.device) as processes:
        return _train(settings, processes)


def _train(settings: TrainSettings, processes: Processes) -> TrainResult:
    started = time.monotonic()
    model_url = storage.normalise(settings.model)
    checkpoint = start_or_resume(settings, model_url)
    settings = as_begun(settings, checkpoint)
    dataset, device = open_dataset(settings.data), processes.device
    found = read_generator(settings)
    list_samples(dataset, settings.val_split)  # that it is there is known at once, what it holds in a while
    train_facts, sizes = look_at_objects(dataset, settings.split)
    val_facts = look_through(dataset, settings.val_split)
    warnings = say(_checked(train_facts, val_facts, settings))
    corrections = _corrections(settings, model_url, dataset, checkpoint, processes)
    corrected: list[Read] = [partial(open_correction, correction, dataset) for correction in corrections]
    reads, n_labelled = [*reads_of(dataset, train_facts.usable), *corrected], len(train_facts.usable)
    groups = learning_groups(train_facts, settings.group_by)
    warnings += say(_shared_groups(groups, val_facts, settings))
    parts = with_corrections(split_parts(n_labelled, groups), n_labelled, len(corrections))
    beginning = begin(settings, found, dataset, train_facts, sizes)
    spec, scale = beginning.spec, beginning.scale
    if checkpoint is not None:
        require_same_generator(checkpoint, spec, settings)
    logger.info("scale: %s", scale.line)
    warnings += say(scale.warnings)
    generator, discriminator = (
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in (beginning.generator, beginning.discriminator)
    )
    adversary = discriminator.adversary
    assert adversary is not None  # there is a game to play
    with (
        load_pixels(reads, [1.0] * n_labelled + weights(corrections), spec, settings.cache_bytes) as labelled,
        load_samples(
            dataset, val_facts.usable, spec, settings.cache_bytes - labelled.cached_bytes
        ) as validation,
    ):
        work = Work(settings, model_url, spec, labelled, parts, device, beginning.pretrained, processes)
        progress = play(work, (generator, adversary), validation, checkpoint)
        generator.load_state_dict(progress.best_generator)
        adversary.load_state_dict(progress.best_discriminator)
        judging = judge(work, generator, discriminator, progress, checkpoint)
    model_id = ""
    if processes.is_first:
        keep_seen(model_url, {*train_facts.digests, *map(_digest, corrected)})
        model_id = _save(work, dataset, corrections, beginning, progress, judging).model_id
        delete_checkpoint(model_url)
    best = _best(progress)
    return TrainResult(
        model_url,
        processes.text_from_first(model_id),
        progress.epoch,
        progress.best_epoch,
        best.validation_mean_iou or 0.0,
        best.validation_pixel_accuracy or 0.0,
        time.monotonic() - started,
        warnings,
    )


def _shared_groups(groups: list[str] | None, val_facts: SplitFacts, settings: TrainSettings) -> list[str]:
    return shared_groups_line(groups, groups_of(val_facts, settings.group_by), settings.val_split)


def _digest(read: Read) -> str:
    with read() as (image, _):
        return pixel_digest(image)


def _checked(train_facts: SplitFacts, val_facts: SplitFacts, settings: TrainSettings) -> list[str]:
    """What to say of the splits that teach and validate. Raises DatasetError for what may not be used."""
    waived = [line for facts in (train_facts, val_facts) for line in require_usable(facts, settings.allow)]
    waived += require_apart(train_facts, val_facts, settings.allow)
    repeated = [line for facts in (train_facts, val_facts) if (line := copies(facts))]
    return [*waived, *repeated, *warnings_of(train_facts), *warnings_of(val_facts)]


def _corrections(
    settings: TrainSettings,
    model_url: str,
    dataset: Dataset,
    checkpoint: Checkpoint | None,
    processes: Processes,
) -> list[Correction]:
    """What people corrected: as it was when this training began, and as the first process found it."""
    if not settings.corrections:
        return []
    uri = storage.join(model_url, CORRECTIONS)
    if checkpoint is not None:
        return from_json(storage.read_bytes(uri))
    kept = b""
    if processes.is_first:
        kept = to_json(find_corrections(settings.corrections, dataset))
        storage.put(uri, kept)
    return from_json(processes.text_from_first(kept.decode()).encode())


def _best(progress: Progress) -> EpochRecord:
    return next(record for record in progress.history if record.epoch == progress.best_epoch)


def _save(
    work: Work,
    dataset: Dataset,
    corrections: list[Correction],
    beginning: Beginning,
    progress: Progress,
    judging: list[RoundRecord],
) -> ModelCard:
    settings, model_url, discriminator = work.settings, work.model_url, beginning.discriminator
    trained = stored(beginning, work.device)
    weights = trained.weights, encode_weights(discriminator)
    best = _best(progress)
    digest = model_digest(trained.spec, *weights)
    card = ModelCard(
        model_id=shown(digest),
        digest=digest,
        spec=trained.spec,
        training_data={
            "name": dataset.name,
            "split": settings.split,
            "fingerprint": fingerprint(dataset, settings.split),
            "validation_fingerprint": fingerprint(dataset, settings.val_split),
            "corrections": str(len(corrections)),
        },
        training_settings=settings.model_dump(mode="json", exclude={"data", "model", "resume", "generator"}),
        metrics={
            "split": settings.val_split,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "mean_iou": best.validation_mean_iou,
            "pixel_accuracy": best.validation_pixel_accuracy,
            "score_combination": score_combination(discriminator.judge),
        },
        versions=versions(trained.spec.architecture),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.put(storage.join(model_url, "history.csv"), history_csv(progress.history))
    storage.put(storage.join(model_url, "judging.csv"), history_csv(judging))
    storage.put(storage.join(model_url, "curves.png"), history_png(progress.history, judging))
    save_bundle(model_url, card, *weights, trained.files)
    return card
