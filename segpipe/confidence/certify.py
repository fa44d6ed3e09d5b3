"""From labelled images to a policy: the threshold certified, the score's display map fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.confidence import growing, guarantee
from segpipe.confidence.calibration_error import (
    cross_validated_map,
    error_of_a_perfect_map,
    expected_calibration_error,
)
from segpipe.confidence.certificates import (
    BadFraction,
    CalibrationImages,
    ClassPixels,
    ClassTarget,
    MeanLoss,
    Wanted,
    certificate_of,
    certificates_of,
)
from segpipe.confidence.display import fit_display_map
from segpipe.confidence.growing import Growth
from segpipe.confidence.policy import (
    BadFractionPromise,
    ClassGuard,
    DeviceKind,
    GroupCertificate,
    MeanLossPromise,
    Policy,
    Precision,
    holds_back,
    sealed,
)
from segpipe.confidence.whole_groups import PromiseAbout
from segpipe.errors import PolicyError
from segpipe.metrics import IouRule

__all__ = [
    "Asked", "BadFraction", "ClassPixels", "ClassTarget", "MeanLoss", "Measured", "Origin",
    "check_groups_can_grow", "make_policy",
]  # fmt: skip


@dataclass(frozen=True)
class _Display:
    """The map from scores to the confidence that is shown, and how far that lies from the true IoU.

    calibration_error_floor: how far a perfect one would lie, by chance, on so many images.
    """

    display_scores: tuple[float, ...]
    display_values: tuple[float, ...]
    calibration_error: float | None
    calibration_error_floor: float | None


@dataclass(frozen=True)
class Measured:
    """What is known of n labelled images.

    `scores` (n,) are raw discriminator scores, `image_ious` (n,) each mask's mean IoU, 0 to 1. `group` (n,)
    names what each image belongs to (see guarantee.certify). `class_confidences` (n, K), 0 to 1, NaN for a
    class not in the mask, are for guards, `class_pixels` for promises about classes. `per_group` (n,) is the
    group with a certificate of its own; None belongs to none and proves nothing.
    """

    scores: ArrayLike
    image_ious: ArrayLike
    group: Sequence[str] | None = None
    class_confidences: ArrayLike | None = None
    class_pixels: ClassPixels | None = None
    per_group: Sequence[str | None] = ()


@dataclass(frozen=True)
class Asked:
    """What is to be promised, and how.

    A mask is bad when its IoU is below the target's minimum; with `class_targets` target may be None. One
    threshold keeps all that is wanted, each at `confidence`, and all of it together, too (see class_test). An
    image that one of the `guards` holds back counts as not accepted, so the promise is about what is accepted
    really. `promise_about` says whether it is about a random image of a random group or about a random mask
    (see whole_groups); `group_by` is the pattern that made the groups, if one did. With `per`, the pattern
    of `per_group`, each of those has a certificate and nothing holds for all images alike. Patterns are kept.
    `candidate_thresholds` may come from any images but these images' labels: best from the scores of other
    images; by default they are quantiles of the scores at pre-set coverages. Both keep the promise within
    1 - confidence in simulation, the first with the weaker assumption: see guarantee.candidate_thresholds.
    With `draw_share`, above 0 to 1, the policy may grow (see growing): half of 1 - confidence is kept for
    that, and labelling draws at least that share of all masks.
    """

    target: BadFraction | MeanLoss | None
    confidence: float
    class_targets: Sequence[ClassTarget] = ()
    guards: Sequence[ClassGuard] = ()
    promise_about: PromiseAbout = "groups"
    group_by: str | None = None
    per: str | None = None
    draw_share: float | None = None
    candidate_thresholds: ArrayLike | None = None


@dataclass(frozen=True)
class Origin:
    """What a policy keeps of its making: the model, the calibration images, when (ISO 8601 in UTC), what was
    warned of, one line each, the rule by which IoUs were measured and what computed the scores."""

    model_id: str
    calibration_fingerprint: str
    created_at: str
    model_digest: str | None = None
    warnings: Sequence[str] = ()
    iou_rule: IouRule | None = None
    device: DeviceKind | None = None
    precision: Precision | None = None


def make_policy(measured: Measured, asked: Asked, origin: Origin) -> Policy:
    """Certify a threshold on labelled images and fit the score's display map.

    Raises PolicyError when the inputs are empty, differ in length or are out of range (a NaN IoU is an image
    without a labelled pixel: leave it out), no score is finite, or nothing is wanted; also
    where a policy that is to grow promises something else than a share of bad masks, or has groups.
    """
    images = _images(measured, asked)
    growth = _growth(asked, images)
    wanted = _wanted(asked, growth)
    certificate = certificate_of("", images, wanted)
    policy = Policy(
        policy_id="",
        confidence=float(asked.confidence),
        guards=tuple(asked.guards),
        group_by=asked.group_by,
        promises_about=None if measured.group is None else asked.promise_about,
        per=asked.per,
        certificates=certificates_of(images, measured.per_group, wanted),
        growth=growth,
        **(certificate if asked.per is None else _unproven(certificate)).of_policy,
        **vars(_displayed(images.scores, images.ious, measured.group)),
        **vars(replace(origin, warnings=tuple(origin.warnings))),
    )
    return sealed(policy)


def _images(measured: Measured, asked: Asked) -> CalibrationImages:
    """The images as they are certified on. PolicyError for what nothing can be certified on."""
    scores, ious = _checked_calibration(measured.scores, measured.image_ious)
    _check_wanted(asked.target, asked.class_targets, measured.class_pixels, len(scores))
    return CalibrationImages(
        scores,
        _acceptable(scores, asked.guards, measured.class_confidences),
        ious,
        _checked_group(measured.group, len(scores)),
        measured.class_pixels,
    )


def _wanted(asked: Asked, growth: Growth | None) -> Wanted:
    """Calibration has half of the error where the other half is kept for growth."""
    confidence = float(asked.confidence) if growth is None else (1 + asked.confidence) / 2
    classes, thresholds = tuple(asked.class_targets), asked.candidate_thresholds
    return Wanted(asked.target, classes, confidence, asked.promise_about, thresholds)


def check_groups_can_grow(group: Sequence[str] | NDArray[np.str_] | None) -> None:
    """Raises PolicyError where images (one entry each) share a group."""
    if group is not None and len(set(group)) < len(group):
        raise PolicyError(
            "a promise that counts each group of images once cannot grow: masks are drawn and counted one by "
            "one; calibrate without --grow, or on one image of each group"
        )


def _growth(asked: Asked, images: CalibrationImages) -> Growth | None:
    """How it may grow; None where it is not to."""
    share = asked.draw_share
    if share is None:
        return None
    if not isinstance(asked.target, BadFraction) or asked.class_targets or asked.per is not None:
        raise PolicyError(
            "only a promise about the share of bad masks can grow: not one about a mean loss, about classes "
            "or for each group"
        )
    check_groups_can_grow(images.group)
    if not 0 < share <= 1:
        raise PolicyError(f"draw share {share} is outside (0, 1]: 0.02 is a usual choice")
    return Growth(guarantee.candidate_thresholds(images.acceptable, growing.COVERAGES), float(share))


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
    known, true = scores[finite], ious[finite]
    groups = None if group is None else np.asarray(group)[finite]
    shown = cross_validated_map(known, true, groups)
    found = (
        (None, None)
        if shown is None
        else (expected_calibration_error(shown, true), error_of_a_perfect_map(shown, true, groups))
    )
    return _Display(*fit_display_map(known, true), *found)
