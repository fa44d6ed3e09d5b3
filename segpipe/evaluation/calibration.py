"""`segpipe calibrate`: from labelled images the model has not seen to a policy that keeps a promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import compress

import numpy as np

from segpipe import storage
from segpipe.confidence.certify import (
    BadFraction,
    ClassPixels,
    ClassTarget,
    MeanLoss,
    check_groups_can_grow,
    make_policy,
)
from segpipe.confidence.class_test import ClassPromiseKind
from segpipe.confidence.policy import Guard, Policy, on_classes, to_json
from segpipe.config import CalibrateSettings, class_share, guarded_class
from segpipe.datasets import Dataset, Sample, fingerprint, list_samples
from segpipe.errors import DatasetError, PolicyError
from segpipe.evaluation.calibration_look import look_again, under_look
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
from segpipe.metrics import confusion_iou, confusion_matrix
from segpipe.models.device import kind_of, precision_of
from segpipe.models.labeler import POLICY_FILE, Labeler, load_without_policy
from segpipe.name_groups import group_of, group_of_address, quoted
from segpipe.progress import track
from segpipe.training.learnt_images import seen_images


@dataclass(frozen=True)
class _Measured:
    """Raw scores (n,), IoUs (n,), NaN without a labelled pixel, and class confidences (n, K) of n images;
    class_pixels: labelled ones; shown_pixels (256,): pixels of each class in all masks together."""

    scores: np.ndarray
    ious: np.ndarray
    class_confidences: np.ndarray
    class_pixels: ClassPixels
    shown_pixels: np.ndarray


def calibrate(settings: CalibrateSettings) -> Policy:
    """Certify a threshold on a labelled split and write policy.json into the model's folder.

    A calibration again on images that overlap is tested more strictly, and the policy states the confidence
    that holds for all of them together (see confidence.looks); the ledger is written before policy.json, and
    not at all where no policy can be made.
    Raises DatasetError (also for what inspection.checks refuses, as a split that was trained on, whose scores
    would flatter the model, and when an image has no group), PolicyError (a guarded class that the model has
    not; no error left to spend), ModelError, StorageError.
    """
    labeler = load_without_policy(settings.model, settings.device)
    guards = on_classes([Guard(*guarded_class(guard)) for guard in settings.guard], labeler.classes)
    class_targets = _class_targets(settings, labeler.classes)
    dataset = open_matching_dataset(labeler, settings.data)
    keys = [sample.key for sample in list_samples(dataset, settings.split)]
    groups = _groups(dataset, keys, settings)
    if settings.grow and groups is not None:
        check_groups_can_grow(list(groups.values()))
    per_group = _certified_apart(keys, settings.per)
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
    pixels = ClassPixels(measured.class_pixels.true[labelled], measured.class_pixels.shown[labelled])
    warnings += say(_outside(keys, per_group, settings.per))
    warnings += say(_too_rare(labeler.classes, pixels.true, settings))

    @cache
    def certified(confidence: float) -> Policy:
        return make_policy(
            measured.scores[labelled],
            measured.ious[labelled],
            labeler.model_id,
            _target(settings),
            confidence,
            calibration_fingerprint,
            datetime.now(UTC).isoformat(timespec="seconds"),
            group=None if groups is None else [groups[one.key] for one in compress(facts.usable, labelled)],
            group_by=settings.group_by,
            promise_about=settings.promise_about,
            per=settings.per,
            per_group=[per_group.get(one.key) for one in compress(facts.usable, labelled)],
            guards=guards,
            class_confidences=measured.class_confidences[labelled],
            class_targets=class_targets,
            class_pixels=pixels,
            model_digest=labeler.digest,
            iou_rule=labeler.bundle.spec.iou_rule,
            warnings=warnings,
            draw_share=settings.growing_share,
            device=kind_of(labeler.device),
            precision=precision_of(labeler.device),
        )

    asked = {
        "fingerprint": calibration_fingerprint,
        "groups": None if groups is None else list(groups.values()),
    }
    certified(settings.confidence)  # refused here, what no policy can be made of costs no look
    look = look_again(settings, labeler.digest or labeler.model_id, facts.digests, asked)
    policy = under_look(look, certified)
    storage.put(storage.join(storage.normalise(settings.model), POLICY_FILE), to_json(policy).encode())
    return policy


def _groups(dataset: Dataset, keys: Sequence[str], settings: CalibrateSettings) -> dict[str, str] | None:
    """The group of each image; None where there are none. DatasetError where the promise needs them."""
    names = image_groups(dataset, keys, settings.group_by)
    if names is not None:
        return dict(zip(keys, names, strict=True))
    if settings.promise_about == "masks":
        raise DatasetError(
            f"{settings.data} has no groups, so its images are drawn one by one and a promise about a random "
            "mask is the usual one: leave out --promise-about, or name groups with --group-by"
        )
    return None


def _certified_apart(keys: Sequence[str], per: str | None) -> dict[str, str]:
    """The group of each image that gets a certificate of its own; none without a pattern.

    Raises DatasetError for a pattern that finds nothing, or not the same in an image's address as in its key:
    labelling goes by the address.
    """
    if per is None:
        return {}
    found = {key: group_of(key, per) for key in keys}
    for key, group in found.items():
        address = f"s3://-/{key}.-"
        if not group_of(address, per) == group_of_address(address, per) == group:
            raise DatasetError(
                f"{quoted(per)} finds another group in the image key {key!r} than in the address of such an "
                "image, which labelling goes by, or more than one in its folders and its name: give a "
                r"regular expression that is not bound to the beginning or the end, such as 'cam\d+'"
            )
    named = {key: group for key, group in found.items() if group is not None}
    if not named:
        raise DatasetError(f"{quoted(per)} finds no group in any image key, such as {keys[0]!r}")
    return named


def _outside(keys: Sequence[str], per_group: Mapping[str, str], per: str | None) -> list[str]:
    """That some images belong to no group, in one line, or none."""
    if per is None or len(per_group) == len(keys):
        return []
    count = len(keys) - len(per_group)
    return [f"{count} of {len(keys)} images belong to no group by {quoted(per)}: they prove nothing"]


def _target(settings: CalibrateSettings) -> BadFraction | MeanLoss | None:
    if settings.max_mean_loss is not None:
        return MeanLoss(settings.max_mean_loss)
    if settings.min_iou is None or settings.max_bad_fraction is None:  # the settings hold both or none
        return None
    return BadFraction(settings.min_iou, settings.max_bad_fraction)


def _class_targets(settings: CalibrateSettings, classes: Sequence[str]) -> list[ClassTarget]:
    """What is to be promised of classes. Raises PolicyError for a class that the model has not."""
    by_kind: dict[ClassPromiseKind, tuple[str, ...]] = {
        "miss": settings.miss,
        "false_alarm": settings.false_alarm,
    }
    return [
        ClassTarget(kind, name, _index(name, classes), share, settings.min_object_px)
        for kind, promised in by_kind.items()
        for name, share in map(class_share, promised)
    ]


def _index(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise PolicyError(
            f"cannot promise anything of {name!r}, the model has no such class: its classes are "
            f"{', '.join(classes)}"
        )
    return classes.index(name)


def _too_rare(classes: Sequence[str], true: np.ndarray, settings: CalibrateSettings) -> list[str]:
    """That the promise about masks says nothing of some classes, in one line, or none.

    `true` (n, K) are labelled pixels: fewer images have such a class than masks may be bad, so a model that
    never shows it can keep the promise.
    """
    allowed = settings.max_bad_fraction or settings.max_mean_loss
    promised = {class_share(one)[0] for one in settings.miss}
    with_class = dict(zip(classes, (true >= settings.min_object_px).sum(axis=0).tolist(), strict=True))
    rare = {
        name: count
        for name, count in with_class.items()
        if allowed and 0 < count < allowed * len(true) and name not in promised
    }
    if not rare:
        return []
    named = ", ".join(f"{name!r} {count} ({count / len(true):.2g})" for name, count in rare.items())
    return [
        "the promise about masks says nothing of a class that is rarer than the masks that may be bad "
        f"({allowed:g}): of {len(true)} images have {named}; a model that never shows it could be certified "
        f"all the same, so add --miss {next(iter(rare))}:SHARE"
    ]


def _check_unseen(training_data: dict[str, str], fingerprint: str, settings: CalibrateSettings) -> list[str]:
    """Warnings; DatasetError for the split that the model was trained on, unless that is allowed."""
    place = f"split {settings.split} of {settings.data}"
    if "fingerprint" not in training_data:
        return [
            "model.json does not say which images the model was trained on: the promise holds only if it has "
            f"not seen those of {place}"
        ]
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
    scores, ious, class_confidences, true, seen = [], [], [], [], []
    n_classes, shown = len(labeler.classes), np.zeros(256, np.int64)
    with track(len(samples), "calibrate") as progress:
        for pairs in read_in_batches(dataset, samples, labeler.batch_size):
            for (_, truth), labeled in zip(
                pairs, labeler.label_pixels(image for image, _ in pairs), strict=True
            ):
                scores.append(labeled.discriminator_score)
                confusion = confusion_matrix(truth, labeled.mask, n_classes, dataset.ignore_index)
                ious.append(confusion_iou(confusion, labeler.iou_rule))
                class_confidences.append(labeled.class_confidences)
                true.append(confusion.sum(axis=1))
                seen.append(confusion.sum(axis=0))
                shown += value_counts(labeled.mask)
            progress.advance(len(pairs))
    pixels = ClassPixels(np.asarray(true), np.asarray(seen))
    return _Measured(np.asarray(scores), np.asarray(ious), np.asarray(class_confidences), pixels, shown)
