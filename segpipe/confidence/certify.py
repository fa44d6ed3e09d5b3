"""From labelled images to a policy: the threshold certified, the score's display map fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.confidence import guarantee
from segpipe.confidence.arithmetic import N_QUANTILES
from segpipe.confidence.calibration_error import cross_validated_error
from segpipe.confidence.class_test import ThresholdBound, p_value, threshold_bound
from segpipe.confidence.display import fit_display_map
from segpipe.confidence.policy import (
    BadFractionPromise,
    ClassesOnly,
    ClassGuard,
    ClassPromise,
    ClassPromiseKind,
    GroupCertificate,
    MaskPromise,
    MeanLossPromise,
    Policy,
    holds_back,
    sealed,
)
from segpipe.errors import PolicyError
from segpipe.metrics import IouRule


@dataclass(frozen=True)
class BadFraction:
    """Wanted: at most `max_bad_fraction` of the accepted masks have an IoU below `min_iou`."""

    min_iou: float
    max_bad_fraction: float


@dataclass(frozen=True)
class MeanLoss:
    """Wanted: the accepted masks lose at most `max_mean_loss` on average; a mask loses 1 - IoU."""

    max_mean_loss: float


@dataclass(frozen=True)
class ClassTarget:
    """Wanted of one of the model's classes: see policy.ClassPromise."""

    kind: ClassPromiseKind
    class_name: str
    class_index: int
    max_share: float
    min_object_px: int


@dataclass(frozen=True)
class ClassPixels:
    """Labelled pixels of each class in n images, (n, K) each: by the truth, and by the mask."""

    true: NDArray[np.int64]
    shown: NDArray[np.int64]


@dataclass(frozen=True)
class _Display:
    """The map from scores to the confidence that is shown, and how far that lies from the true IoU."""

    scores: tuple[float, ...]
    values: tuple[float, ...]
    error: float | None


@dataclass(frozen=True)
class _Images:
    """n calibration images: scores, the same with -inf for what no threshold accepts, IoUs: (n,) each."""

    scores: NDArray[np.float64]
    acceptable: NDArray[np.float64]
    ious: NDArray[np.float64]
    group: NDArray[np.str_] | None
    pixels: ClassPixels | None


@dataclass(frozen=True)
class _Wanted:
    """What is to be promised, at once."""

    masks: BadFraction | MeanLoss | None
    classes: tuple[ClassTarget, ...]
    confidence: float
    candidate_thresholds: ArrayLike | None


@dataclass(frozen=True)
class _OfMasks:
    """The loosest threshold that keeps the promise about masks, None when none does, and its evidence."""

    promised: MaskPromise
    threshold: float | None
    p_value: float
    labelled_images_needed: int | None


@dataclass(frozen=True)
class _OfClass:
    """The images that a promise about a class counts (rows), those with a wrong mask, what that allows."""

    target: ClassTarget
    acceptable: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    bound: ThresholdBound


def make_policy(
    scores: ArrayLike,
    image_ious: ArrayLike,
    model_id: str,
    target: BadFraction | MeanLoss | None,
    confidence: float,
    calibration_fingerprint: str,
    created_at: str,
    *,
    candidate_thresholds: ArrayLike | None = None,
    group: Sequence[str] | None = None,
    guards: Sequence[ClassGuard] = (),
    class_confidences: ArrayLike | None = None,
    class_targets: Sequence[ClassTarget] = (),
    class_pixels: ClassPixels | None = None,
    group_by: str | None = None,
    per: str | None = None,
    per_group: Sequence[str | None] = (),
    model_digest: str | None = None,
    warnings: Sequence[str] = (),
    iou_rule: IouRule | None = None,
) -> Policy:
    """Certify a threshold on labelled images and fit the score's display map.

    `scores` (n,) are raw discriminator scores, `image_ious` (n,) each mask's mean IoU, 0 to 1; a mask is bad
    when its IoU is below the target's minimum. `group` (n,) names what each image belongs to (see
    guarantee.certify). `guards` need `class_confidences` (n, K), 0 to 1, NaN for a class not in the mask: an
    image that a guard holds back counts as not accepted, so the promise is about what is accepted really.
    `group_by` is the pattern that made the groups, if one did; kept. With `per`, a pattern kept as well, and
    `per_group` (n,), what it finds in each image's name, each group has a certificate and nothing holds for
    all images alike; None belongs to no group and proves nothing.
    `class_targets` need `class_pixels`; with them `target` may be None. One threshold keeps all that is
    wanted, each at `confidence`, and all of it together, too (see class_test).
    `candidate_thresholds` may come from any images but these images' labels: best from the scores of other
    images; by default they are quantiles of `scores` at pre-set coverages. Both keep the promise within
    1 - confidence in simulation, the first with the weaker assumption: see guarantee.candidate_thresholds.
    `warnings` are kept in the policy, one line each, and so is `iou_rule`, by which the IoUs were measured.

    Raises PolicyError when the inputs are empty, differ in length or are out of range (a NaN IoU is an image
    without a labelled pixel: leave it out), no score is finite, or nothing is wanted.
    """
    score_values, ious = _checked_calibration(scores, image_ious)
    _check_wanted(target, class_targets, class_pixels, len(score_values))
    images = _Images(
        score_values,
        _acceptable(score_values, guards, class_confidences),
        ious,
        _checked_group(group, len(score_values)),
        class_pixels,
    )
    wanted = _Wanted(target, tuple(class_targets), float(confidence), candidate_thresholds)
    certificate = _certificate("", images, wanted)
    certificates = _certificates(images, per_group, wanted)
    if per is not None:
        certificate = _unproven(certificate)
    display = _displayed(score_values, ious, group)
    policy = Policy(
        policy_id="",
        model_id=model_id,
        promised=certificate.promised,
        confidence=wanted.confidence,
        threshold=certificate.threshold,
        accepted=certificate.accepted,
        p_value=certificate.p_value,
        n_calibration=certificate.n_calibration,
        n_images=certificate.n_images,
        labelled_images_needed=certificate.labelled_images_needed,
        guards=tuple(guards),
        score_quantiles=certificate.score_quantiles,
        display_scores=display.scores,
        display_values=display.values,
        calibration_error=display.error,
        calibration_fingerprint=calibration_fingerprint,
        created_at=created_at,
        model_digest=model_digest,
        warnings=tuple(warnings),
        held_back=certificate.held_back,
        iou_rule=iou_rule,
        class_promises=certificate.class_promises,
        group_by=group_by,
        per=per,
        certificates=certificates,
    )
    return sealed(policy)


def _check_wanted(
    target: BadFraction | MeanLoss | None,
    class_targets: Sequence[ClassTarget],
    pixels: ClassPixels | None,
    n_images: int,
) -> None:
    if target is None and not class_targets:
        raise PolicyError("nothing is to be promised: give a target for masks or for a class")
    if class_targets and (pixels is None or not len(pixels.true) == len(pixels.shown) == n_images):
        raise PolicyError(f"a promise about a class needs the class pixels of all {n_images} images")
    for wanted in class_targets:
        guarantee.check_target(f"share of {wanted.class_name!r}", wanted.max_share, 0.5)


def _certificates(
    images: _Images, per_group: Sequence[str | None], wanted: _Wanted
) -> tuple[GroupCertificate, ...]:
    """One of each group, in the order of their names; of a group without a finite score there is none."""
    if not any(per_group):
        return ()
    groups = np.asarray([name or "" for name in per_group])
    rows = [np.flatnonzero(groups == name) for name in np.unique(groups) if name]
    return tuple(
        _certificate(str(groups[of_group[0]]), _some(images, of_group), wanted)
        for of_group in rows
        if np.isfinite(_some(images, _one_per_group(of_group, images.group)).scores).any()
    )


def _some(images: _Images, rows: NDArray[np.int64]) -> _Images:
    pixels = images.pixels
    return _Images(
        images.scores[rows],
        images.acceptable[rows],
        images.ious[rows],
        None if images.group is None else images.group[rows],
        None if pixels is None else ClassPixels(pixels.true[rows], pixels.shown[rows]),
    )


def _unproven(certificate: GroupCertificate) -> GroupCertificate:
    """What is wanted and counted, with no threshold."""
    promised = certificate.promised
    match promised:
        case BadFractionPromise():
            promised = replace(promised, bad=None)
        case MeanLossPromise():
            promised = replace(promised, mean_loss=None)
    classes = tuple(replace(one, found=None, p_value=1.0) for one in certificate.class_promises)
    return replace(
        certificate,
        promised=promised,
        threshold=None,
        accepted=0,
        p_value=1.0,
        labelled_images_needed=None,
        class_promises=classes,
    )


def _certificate(name: str, images: _Images, wanted: _Wanted) -> GroupCertificate:
    """What the images prove, with one threshold for all that is wanted."""
    drawn = _one_per_group(np.arange(len(images.scores)), images.group)
    score_quantiles, acceptable = _quantiles(images.scores[drawn]), images.acceptable[drawn]
    classes = [_of_class(one, images, wanted.confidence) for one in wanted.classes]
    lowest = max((one.bound.above for one in classes), default=-math.inf)
    masks = _of_masks(wanted, acceptable, images.ious[drawn], lowest)
    promises = tuple(_class_promise(one, masks.threshold, acceptable) for one in classes)
    return GroupCertificate(
        group=name,
        promised=masks.promised,
        threshold=masks.threshold,
        accepted=0 if masks.threshold is None else int((acceptable >= masks.threshold).sum()),
        p_value=max((one.p_value for one in promises), default=1.0)
        if isinstance(masks.promised, ClassesOnly)
        else masks.p_value,
        n_calibration=len(drawn),
        n_images=len(images.scores),
        labelled_images_needed=masks.labelled_images_needed,
        held_back=int(np.isneginf(acceptable).sum()),
        score_quantiles=score_quantiles,
        class_promises=promises,
    )


def _of_class(target: ClassTarget, images: _Images, confidence: float) -> _OfClass:
    assert images.pixels is not None  # checked with the targets
    true = images.pixels.true[:, target.class_index] >= target.min_object_px
    shown = images.pixels.shown[:, target.class_index] >= target.min_object_px
    concerned = true if target.kind == "miss" else ~true
    rows = _one_per_group(np.flatnonzero(concerned), images.group)
    wrong, acceptable = (true != shown)[rows], images.acceptable[rows]
    bound = threshold_bound(acceptable[wrong], len(rows), target.max_share, confidence)
    return _OfClass(target, acceptable, wrong, bound)


def _class_promise(found: _OfClass, threshold: float | None, acceptable: NDArray[np.float64]) -> ClassPromise:
    """In the policy's words; `acceptable` (n,) are the scores of all images that were drawn."""
    target, n_images, bound = found.target, len(found.wrong), found.bound
    accepted = None if threshold is None else int((found.acceptable[found.wrong] >= threshold).sum())
    can_pass = math.isinf(bound.above) or (acceptable > bound.above).any()
    return ClassPromise(
        kind=target.kind,
        class_name=target.class_name,
        class_index=target.class_index,
        max_share=float(target.max_share),
        min_object_px=target.min_object_px,
        n_images=n_images,
        found=accepted,
        p_value=1.0 if accepted is None else p_value(accepted, n_images, target.max_share),
        labelled_images_needed=bound.labelled_images_needed if can_pass else None,
    )


def _of_masks(
    wanted: _Wanted, acceptable: NDArray[np.float64], ious: NDArray[np.float64], lowest: float
) -> _OfMasks:
    """The loosest threshold above `lowest` that keeps the promise about masks, if there is to be one."""
    if wanted.masks is None:
        return _above(_candidates(wanted, acceptable), lowest, acceptable)
    candidates = _candidates(wanted, acceptable)
    alone = _certified(wanted.masks, acceptable, ious, candidates, wanted.confidence)
    if alone.threshold is None or alone.threshold > lowest:
        return alone
    higher = [candidate for candidate in candidates if candidate > lowest]
    together = _certified(wanted.masks, acceptable, ious, higher, wanted.confidence)
    return replace(together, labelled_images_needed=0)  # of masks: it is a class that wants more


def _above(candidates: Sequence[float], lowest: float, acceptable: NDArray[np.float64]) -> _OfMasks:
    surest = acceptable.max(initial=-math.inf)
    allowed = [candidate for candidate in candidates if lowest < candidate <= surest]
    return _OfMasks(ClassesOnly(), min(allowed, default=None), 1.0, 0 if allowed else None)


def _candidates(wanted: _Wanted, acceptable: NDArray[np.float64]) -> tuple[float, ...]:
    """The thresholds to choose from; for promises about classes alone any will do, so all scores."""
    if wanted.candidate_thresholds is not None:
        return tuple(np.asarray(wanted.candidate_thresholds, dtype=np.float64).ravel().tolist())
    if wanted.masks is None:
        return tuple(np.unique(acceptable[np.isfinite(acceptable)]).tolist())
    return _quantile_thresholds(acceptable, wanted.masks, wanted.confidence)


def _checked_calibration(
    scores: ArrayLike, image_ious: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    score_values = np.asarray(scores, dtype=np.float64)
    ious = np.asarray(image_ious, dtype=np.float64)
    if score_values.ndim != 1 or score_values.shape != ious.shape:
        raise PolicyError(
            f"scores {score_values.shape} and image IoUs {ious.shape} differ: give one of each per image"
        )
    outside = np.flatnonzero(~((ious >= 0) & (ious <= 1)))
    if outside.size:
        raise PolicyError(
            f"calibration image {outside[0]} has IoU {ious[outside[0]]}, outside 0..1: "
            "leave out images without a labelled pixel"
        )
    return score_values, ious


def _checked_group(group: Sequence[str] | None, n_images: int) -> NDArray[np.str_] | None:
    if group is None:
        return None
    if len(group) != n_images:
        raise PolicyError(f"{n_images} scores and {len(group)} group labels differ: give one label per image")
    guarantee.one_per_group(group)  # which every image must have
    return np.asarray([str(label) for label in group])


def _one_per_group(rows: NDArray[np.int64], group: NDArray[np.str_] | None) -> NDArray[np.int64]:
    """All of the rows, or one of each group that is among them."""
    if group is None or not rows.size:
        return rows
    return rows[guarantee.one_per_group(group[rows].tolist())]


def _acceptable(
    scores: NDArray[np.float64], guards: Sequence[ClassGuard], class_confidences: ArrayLike | None
) -> NDArray[np.float64]:
    """The scores, -inf of what no threshold accepts: no finite score, or a guard holds it back."""
    held_back = _held_back(guards, class_confidences, len(scores)) | ~np.isfinite(scores)
    return np.where(held_back, -np.inf, scores)


def _held_back(
    guards: Sequence[ClassGuard], class_confidences: ArrayLike | None, n_images: int
) -> NDArray[np.bool_]:
    if not guards:
        return np.zeros(n_images, dtype=bool)
    by_image = np.asarray(class_confidences, dtype=np.float64)
    if by_image.ndim != 2 or len(by_image) != n_images:
        raise PolicyError(
            f"guards need class confidences ({n_images}, classes), not {by_image.shape}: "
            "give those of every calibration image"
        )
    return np.array([holds_back(guards, row) for row in by_image])


def _displayed(
    scores: NDArray[np.float64], ious: NDArray[np.float64], group: Sequence[str] | None
) -> _Display:
    finite = np.isfinite(scores)
    groups = None if group is None else np.asarray(group)[finite]
    error = cross_validated_error(scores[finite], ious[finite], groups)
    return _Display(*fit_display_map(scores[finite], ious[finite]), error)


def _quantile_thresholds(
    scores: NDArray[np.float64], target: BadFraction | MeanLoss, confidence: float
) -> tuple[float, ...]:
    match target:
        case BadFraction():
            coverages = guarantee.coverages_to_test(len(scores), target.max_bad_fraction, confidence)
        case MeanLoss():
            coverages = guarantee.coverages_to_test_mean_loss(len(scores), target.max_mean_loss, confidence)
    return guarantee.candidate_thresholds(scores, coverages)


def _certified(
    target: BadFraction | MeanLoss,
    scores: NDArray[np.float64],
    ious: NDArray[np.float64],
    thresholds: ArrayLike,
    confidence: float,
) -> _OfMasks:
    match target:
        case BadFraction(min_iou, limit):
            if not 0 < min_iou <= 1:
                raise PolicyError(f"min IoU {min_iou} is outside (0, 1]: 0.6 is a usual choice")
            counted = guarantee.certify(scores, ious < min_iou, thresholds, limit, confidence)
            promised = BadFractionPromise(float(min_iou), counted.max_bad_fraction, counted.bad)
            return _OfMasks(promised, counted.threshold, counted.p_value, counted.labelled_images_needed)
        case MeanLoss(limit):
            averaged = guarantee.certify_mean_loss(scores, 1 - ious, thresholds, limit, confidence)
            lost = MeanLossPromise(averaged.max_mean_loss, averaged.mean_loss)
            return _OfMasks(lost, averaged.threshold, averaged.p_value, averaged.labelled_images_needed)


def _quantiles(scores: NDArray[np.float64]) -> tuple[float, ...]:
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        raise PolicyError(
            "no calibration image has a finite score: calibrate on at least one image it can judge"
        )
    return tuple(np.quantile(finite, np.linspace(0, 1, N_QUANTILES)).tolist())
