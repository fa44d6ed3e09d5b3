"""`segpipe calibrate`: from labelled images the model has not seen to a policy that keeps a promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress

import numpy as np

from segpipe import storage
from segpipe.confidence.certify import BadFraction, MeanLoss, make_policy
from segpipe.confidence.policy import Guard, Policy, on_classes, to_json
from segpipe.config import CalibrateSettings, guarded_class
from segpipe.datasets import Dataset, Sample, fingerprint, list_samples
from segpipe.errors import DatasetError
from segpipe.evaluation.measure import open_matching_dataset, read_in_batches
from segpipe.groups import image_groups
from segpipe.inspection.checks import (
    never_shown,
    require_no_copies,
    require_unseen,
    require_usable,
    say,
    warnings_of,
)
from segpipe.inspection.facts import SplitFacts, look_through
from segpipe.inspection.looks import value_counts
from segpipe.metrics import image_iou
from segpipe.models.labeler import POLICY_FILE, Labeler, load_without_policy
from segpipe.progress import track
from segpipe.training.learnt_images import seen_images


@dataclass(frozen=True)
class _Measured:
    """Raw scores (n,), IoUs (n,), NaN without a labelled pixel, and class confidences (n, K) of n images;
    shown_pixels (256,): pixels of each class in all masks together."""

    scores: np.ndarray
    ious: np.ndarray
    class_confidences: np.ndarray
    shown_pixels: np.ndarray


def calibrate(settings: CalibrateSettings) -> Policy:
    """Certify a threshold on a labelled split and write policy.json into the model's folder.

    Raises DatasetError (also for what inspection.checks refuses, as a split that was trained on, whose scores
    would flatter the model, and when an image has no group), PolicyError (a guarded class that the model has
    not), ModelError, StorageError.
    """
    labeler = load_without_policy(settings.model, settings.device)
    guards = on_classes([Guard(*guarded_class(guard)) for guard in settings.guard], labeler.classes)
    dataset = open_matching_dataset(labeler, settings.data)
    keys = [sample.key for sample in list_samples(dataset, settings.split)]
    names = image_groups(dataset, keys, settings.group_by)
    groups = None if names is None else dict(zip(keys, names, strict=True))
    calibration_fingerprint = fingerprint(dataset, settings.split)
    known = _check_unseen(labeler.bundle.card.training_data, calibration_fingerprint, settings)
    facts = look_through(dataset, settings.split)
    warnings = say([*known, *_checked(facts, groups, settings)])
    measured = _measure(labeler, dataset, facts.usable)
    n_classes = len(labeler.classes)
    shown, there = measured.shown_pixels[:n_classes].tolist(), facts.pixels[:n_classes].tolist()
    warnings += say(never_shown(labeler.classes, there, shown, settings.split))
    # An image without one labelled pixel says nothing about its mask.
    labelled = ~np.isnan(measured.ious)
    policy = make_policy(
        measured.scores[labelled],
        measured.ious[labelled],
        labeler.model_id,
        _target(settings),
        settings.confidence,
        calibration_fingerprint,
        datetime.now(UTC).isoformat(timespec="seconds"),
        group=None if groups is None else [groups[one.key] for one in compress(facts.usable, labelled)],
        guards=guards,
        class_confidences=measured.class_confidences[labelled],
        model_digest=labeler.digest,
        iou_rule=labeler.bundle.spec.iou_rule,
        warnings=warnings,
    )
    storage.put(storage.join(storage.normalise(settings.model), POLICY_FILE), to_json(policy).encode())
    return policy


def _target(settings: CalibrateSettings) -> BadFraction | MeanLoss:
    if settings.max_mean_loss is not None:
        return MeanLoss(settings.max_mean_loss)
    assert settings.min_iou is not None  # the settings hold one target
    assert settings.max_bad_fraction is not None
    return BadFraction(settings.min_iou, settings.max_bad_fraction)


def _check_unseen(training_data: dict[str, str], fingerprint: str, settings: CalibrateSettings) -> list[str]:
    """Warnings; DatasetError for the split that the model was trained on, unless that is allowed."""
    place = f"split {settings.split} of {settings.data}"
    if training_data["fingerprint"] == fingerprint:
        if "shared" not in settings.allow:
            raise DatasetError(f"the model was trained on {place}: calibrate on images it has not seen")
        return [f"allowed: the model was trained on {place}: the promise is flattered"]
    if training_data.get("validation_fingerprint") == fingerprint:
        return [
            f"{place} picked the model's best weights, so the promise may be a little flattered: prefer "
            "images that training has not looked at"
        ]
    return []


def _checked(facts: SplitFacts, groups: Mapping[str, str] | None, settings: CalibrateSettings) -> list[str]:
    """What to say of the split. Raises DatasetError for what no promise can rest on."""
    return [
        *require_usable(facts, settings.allow),
        *require_unseen(facts, seen_images(settings.model), settings.allow),
        *require_no_copies(facts, groups, settings.allow),
        *warnings_of(facts),
    ]


def _measure(labeler: Labeler, dataset: Dataset, samples: list[Sample]) -> _Measured:
    scores, ious, class_confidences = [], [], []
    n_classes, shown = len(labeler.classes), np.zeros(256, np.int64)
    with track(len(samples), "calibrate") as progress:
        for pairs in read_in_batches(dataset, samples, labeler.batch_size):
            for (_, truth), labeled in zip(
                pairs, labeler.label_pixels(image for image, _ in pairs), strict=True
            ):
                scores.append(labeled.discriminator_score)
                ious.append(image_iou(truth, labeled.mask, n_classes, dataset.ignore_index, labeler.iou_rule))
                class_confidences.append(labeled.class_confidences)
                shown += value_counts(labeled.mask)
            progress.advance(len(pairs))
    return _Measured(np.asarray(scores), np.asarray(ious), np.asarray(class_confidences), shown)
