"""Whether a training may start at a folder, and whether it fits the stopped one that it is to go on with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from segpipe import storage
from segpipe.config import DEFAULT_ARCHITECTURE, FORMER_DEFAULT_ARCHITECTURE, TrainSettings
from segpipe.errors import RunError
from segpipe.models.bundle import ModelSpec
from segpipe.training.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)


def start_or_resume(settings: TrainSettings, model_url: str) -> Checkpoint | None:
    """The checkpoint to go on from; None to start anew. Raises RunError when neither may be."""
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
    kept = checkpoint.data["settings"]
    asked = resumable_settings(_of_its_architecture(settings, kept))
    # A setting that the stopped training did not know yet was at its default.
    defaults = {name: field.default for name, field in TrainSettings.model_fields.items()}
    changed = sorted(name for name in asked if asked[name] != kept.get(name, defaults[name]))
    if changed:
        raise RunError(
            f"cannot resume {model_url}: {', '.join(changed)} differ from the stopped training; "
            "give the same options, or train into another folder"
        )
    return checkpoint


def as_begun(settings: TrainSettings, checkpoint: Checkpoint | None) -> TrainSettings:
    """The settings as a stopped training had them that may be of an older segpipe, with other defaults."""
    if checkpoint is None:
        return settings
    kept = checkpoint.data["settings"]
    begun = _of_its_architecture(settings, kept)
    if begun.architecture != settings.architecture:
        logger.info("going on with --architecture %s, as the stopped training began", begun.architecture)
    # Before there were scales every image was fitted.
    return begun if "scale" in kept else begun.model_copy(update={"scale": "fit"})


def _of_its_architecture(settings: TrainSettings, kept: Mapping[str, Any]) -> TrainSettings:
    """Who asks for the default goes on with the former one where the training began when that was it."""
    asked, begun = settings.architecture, kept.get("architecture")
    if asked != DEFAULT_ARCHITECTURE or begun != FORMER_DEFAULT_ARCHITECTURE:
        return settings
    return settings.model_copy(update={"architecture": begun})


def require_same_generator(checkpoint: Checkpoint, spec: ModelSpec, settings: TrainSettings) -> None:
    """Raises RunError when the folder that the stopped training began with holds other files now."""
    files = None if spec.foreign is None else spec.foreign.files
    if checkpoint.data.get("generator_files") != files:
        raise RunError(
            f"cannot resume {settings.model}: {settings.generator} holds another network than when the "
            "training began; put the former back, or train into another folder"
        )


def resumable_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings that a resumed training must share with the stopped one."""
    without_default = {"allow"} if not settings.allow else set()  # older checkpoints know no such setting
    kept = settings.model_dump(
        mode="json", exclude={"resume", "model", "device", "cache_bytes"} | without_default
    )
    if settings.generator is not None:
        kept["generator"] = storage.normalise(settings.generator)
    return kept | {"data": storage.normalise(settings.data)}
