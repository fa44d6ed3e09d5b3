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
    Asked,
    BadFraction,
    ClassPixels,
    ClassTarget,
    MeanLoss,
    Measured,
    Origin,
    check_groups_can_grow,
    make_policy,
)
from segpipe.confidence.class_test import ClassPromiseKind
from segpipe.confidence.policy import ClassGuard, Guard, Policy, on_classes, to_json
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

    @property
    def is_labelled(self) -> np.ndarray:
        """Whether an image has a labelled pixel (n,)."""
        return ~np.isnan(self.ious)


@dataclass(frozen=True)
class _AboutClasses:
    """What is asked for of the model's classes."""

    guards: tuple[ClassGuard, ...]
    targets: list[ClassTarget]


@dataclass(frozen=True)
class _Split:
    """A labelled split: the group of each image by its key, None where there are none, and the group that
    has a certificate of its own."""

    dataset: Dataset
    keys: list[str]
    groups: dict[str, str] | None
    per_group: dict[str, str]
    fingerprint: str


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
    about = _about_classes(settings, labeler.classes)
    split = _open_split(labeler, settings)
    known = _check_unseen(labeler.bundle.card.training_data, split.fingerprint, settings)
    facts = look_through(split.dataset, settings.split)
    warnings = say([*known, *_checked(facts, split.groups, settings)])
    measured = _measure(labeler, split.dataset, facts.usable)
    warnings += _said_of(measured, labeler.classes, facts, split, settings)
    images = _images(measured, facts.usable, split)

    @cache
    def certified(confidence: float) -> Policy:
        asked = _asked(settings, about, confidence)
        return make_policy(images, asked, _origin(labeler, split.fingerprint, warnings))

    certified(settings.confidence)  # refused here, what no policy can be made of costs no look
    look = look_again(settings, labeler.digest or labeler.model_id, facts.digests, _identity_of(split))
    policy = under_look(look, certified)
    storage.put(storage.join(storage.normalise(settings.model), POLICY_FILE), to_json(policy).encode())
    return policy


def _about_classes(settings: CalibrateSettings, classes: Sequence[str]) -> _AboutClasses:
    """PolicyError for a class that the model has not."""
    guards = on_classes([Guard(*guarded_class(guard)) for guard in settings.guard], classes)
    return _AboutClasses(guards, _class_targets(settings, classes))


def _open_split(labeler: Labeler, settings: CalibrateSettings) -> _Split:
    """DatasetError where its images have not the groups that the promise needs."""
    dataset = open_matching_dataset(labeler, settings.data)
    keys = [sample.key for sample in list_samples(dataset, settings.split)]
    groups = _groups(dataset, keys, settings)
    if settings.grow and groups is not None:
        check_groups_can_grow(list(groups.values()))
    per_group = _certified_apart(keys, settings.per)
    return _Split(dataset, keys, groups, per_group, fingerprint(dataset, settings.split))


def _said_of(
    measured: _Measured, classes: Sequence[str], facts: SplitFacts, split: _Split, settings: CalibrateSettings
) -> tuple[str, ...]:
    """What there is to say, and said, once the masks are known."""
    shown, there = (pixels[: len(classes)].tolist() for pixels in (measured.shown_pixels, facts.pixels))
    true = measured.class_pixels.true[measured.is_labelled]
    never = say(never_shown(classes, there, shown, settings.split))
    outside = say(_outside(split.keys, split.per_group, settings.per))
    return never + outside + say(_too_rare(classes, true, settings))


def _images(measured: _Measured, samples: Sequence[Sample], split: _Split) -> Measured:
    """Those with a labelled pixel: the others say nothing about their masks."""
    labelled = measured.is_labelled
    keys = [sample.key for sample in compress(samples, labelled)]
    pixels = measured.class_pixels
    return Measured(
        scores=measured.scores[labelled],
        image_ious=measured.ious[labelled],
        group=None if split.groups is None else [split.groups[key] for key in keys],
        class_confidences=measured.class_confidences[labelled],
        class_pixels=ClassPixels(pixels.true[labelled], pixels.shown[labelled]),
        per_group=[split.per_group.get(key) for key in keys],
    )


def _asked(settings: CalibrateSettings, about: _AboutClasses, confidence: float) -> Asked:
    return Asked(
        target=_target(settings),
        confidence=confidence,
        class_targets=about.targets,
        guards=about.guards,
        promise_about=settings.promise_about,
        group_by=settings.group_by,
        per=settings.per,
        draw_share=settings.growing_share,
    )


def _origin(labeler: Labeler, calibration_fingerprint: str, warnings: Sequence[str]) -> Origin:
    return Origin(
        model_id=labeler.model_id,
        calibration_fingerprint=calibration_fingerprint,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model_digest=labeler.digest,
        warnings=warnings,
        iou_rule=labeler.bundle.spec.iou_rule,
        device=kind_of(labeler.device),
        precision=precision_of(labeler.device),
    )


def _identity_of(split: _Split) -> dict[str, object]:
    """What makes it this split and no other."""
    groups = None if split.groups is None else list(split.groups.values())
    return {"fingerprint": split.fingerprint, "groups": groups}


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
