"""`segpipe calibrate`: from labelled images the model has not seen to a policy that keeps a promise."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from segpipe import storage
from segpipe.confidence.certify import BadFraction, MeanLoss, make_policy
from segpipe.confidence.policy import Guard, Policy, on_classes, to_json
from segpipe.config import CalibrateSettings, guarded_class
from segpipe.datasets import Dataset, Sample, fingerprint, list_samples
from segpipe.errors import DatasetError
from segpipe.evaluation.measure import open_matching_dataset, read_in_batches
from segpipe.metrics import image_iou
from segpipe.models.labeler import POLICY_FILE, Labeler, load_without_policy
from segpipe.progress import track
from segpipe.training.learnt_images import first_seen, seen_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Judged:
    """Raw scores (n,), IoUs (n,), NaN without a labelled pixel, and class confidences (n, K) of n images."""

    scores: np.ndarray
    ious: np.ndarray
    class_confidences: np.ndarray


def calibrate(settings: CalibrateSettings) -> Policy:
    """Certify a threshold on a labelled split and write policy.json into the model's folder.

    Raises DatasetError (also when the split was trained on: its scores would flatter the model, and when
    an image's key names no group), PolicyError (a guarded class that the model has not), ModelError,
    StorageError.
    """
    labeler = load_without_policy(settings.model, settings.device)
    guards = on_classes([Guard(*guarded_class(guard)) for guard in settings.guard], labeler.classes)
    dataset = open_matching_dataset(labeler, settings.data)
    samples = list_samples(dataset, settings.split)
    keys = [sample.key for sample in samples]
    groups = None if settings.group_by is None else np.asarray(group_names(keys, settings.group_by))
    calibration_fingerprint = fingerprint(dataset, settings.split)
    _check_unseen(labeler.bundle.card.training_data, calibration_fingerprint, settings)
    _check_no_image_seen(samples, settings)
    judged = _judge(labeler, dataset, samples)
    # An image without one labelled pixel says nothing about its mask.
    measured = ~np.isnan(judged.ious)
    if not measured.any():
        raise DatasetError(
            f"no image of split {settings.split} has a labelled pixel: every pixel is the ignore index; "
            "calibrate on images with a truth"
        )
    policy = make_policy(
        judged.scores[measured],
        judged.ious[measured],
        labeler.model_id,
        _target(settings),
        settings.confidence,
        calibration_fingerprint,
        datetime.now(UTC).isoformat(timespec="seconds"),
        group=None if groups is None else groups[measured].tolist(),
        guards=guards,
        class_confidences=judged.class_confidences[measured],
        model_digest=labeler.digest,
    )
    storage.put(storage.join(storage.normalise(settings.model), POLICY_FILE), to_json(policy).encode())
    return policy


def group_names(keys: Sequence[str], pattern: str) -> list[str]:
    """What each image belongs to: the pattern's first match in its key, or that match's first group.

    Raises DatasetError for a key without a match.
    """
    return [_group_name(key, re.compile(pattern)) for key in keys]


def _group_name(key: str, pattern: re.Pattern[str]) -> str:
    match = pattern.search(key)
    name = match and match[1 if pattern.groups else 0]
    if not name:
        raise DatasetError(
            f"{pattern.pattern!r} finds no group in the image key {key!r}: "
            "give --group-by a regular expression that matches every key"
        )
    return name


def _target(settings: CalibrateSettings) -> BadFraction | MeanLoss:
    if settings.max_mean_loss is not None:
        return MeanLoss(settings.max_mean_loss)
    assert settings.min_iou is not None  # the settings hold one target
    assert settings.max_bad_fraction is not None
    return BadFraction(settings.min_iou, settings.max_bad_fraction)


def _check_unseen(training_data: dict[str, str], fingerprint: str, settings: CalibrateSettings) -> None:
    place = f"split {settings.split} of {settings.data}"
    if training_data["fingerprint"] == fingerprint:
        raise DatasetError(f"the model was trained on {place}: calibrate on images it has not seen")
    if training_data.get("validation_fingerprint") == fingerprint:
        logger.warning(
            "%s picked the model's best weights, so the promise may be a little flattered: "
            "prefer images that training has not looked at",
            place,
        )


def _check_no_image_seen(samples: list[Sample], settings: CalibrateSettings) -> None:
    seen = seen_images(storage.normalise(settings.model))
    if uri := first_seen(samples, seen):
        raise DatasetError(
            f"{uri} is among the images the model was trained on: calibrate on others, or train again "
            "without it"
        )


def _judge(labeler: Labeler, dataset: Dataset, samples: list[Sample]) -> _Judged:
    scores, ious, class_confidences = [], [], []
    with track(len(samples), "calibrate") as progress:
        for pairs in read_in_batches(dataset, samples, labeler.batch_size):
            for (_, truth), labeled in zip(pairs, labeler.label([image for image, _ in pairs]), strict=True):
                scores.append(labeled.discriminator_score)
                ious.append(image_iou(truth, labeled.mask, len(labeler.classes), dataset.ignore_index))
                class_confidences.append(labeled.class_confidences)
            progress.advance(len(pairs))
    return _Judged(np.asarray(scores), np.asarray(ious), np.asarray(class_confidences))
