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
    "BadFraction", "ClassPixels", "ClassTarget", "MeanLoss", "check_groups_can_grow", "make_policy",
]  # fmt: skip


@dataclass(frozen=True)
class _Display:
    """The map from scores to the confidence that is shown, and how far that lies from the true IoU.

    floor: how far a perfect one would lie, by chance, on so many images.
    """

    scores: tuple[float, ...]
    values: tuple[float, ...]
    error: float | None
    floor: float | None


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
    promise_about: PromiseAbout = "groups",
    per: str | None = None,
    per_group: Sequence[str | None] = (),
    model_digest: str | None = None,
    warnings: Sequence[str] = (),
    iou_rule: IouRule | None = None,
    draw_share: float | None = None,
    device: DeviceKind | None = None,
    precision: Precision | None = None,
) -> Policy:
    """Certify a threshold on labelled images and fit the score's display map.

    `scores` (n,) are raw discriminator scores, `image_ious` (n,) each mask's mean IoU, 0 to 1; a mask is bad
    when its IoU is below the target's minimum. `group` (n,) names what each image belongs to (see
    guarantee.certify). `guards` need `class_confidences` (n, K), 0 to 1, NaN for a class not in the mask: an
    image that a guard holds back counts as not accepted, so the promise is about what is accepted really.
    `group_by` is the pattern that made the groups, if one did; kept. `promise_about` says whether what is
    promised is about a random image of a random group or about a random mask (see whole_groups). With `per`,
    a pattern kept as well, and `per_group` (n,), what it finds in each image's name, each group has a
    certificate and nothing holds for all images alike; None belongs to no group and proves nothing.
    `class_targets` need `class_pixels`; with them `target` may be None. One threshold keeps all that is
    wanted, each at `confidence`, and all of it together, too (see class_test).
    `candidate_thresholds` may come from any images but these images' labels: best from the scores of other
    images; by default they are quantiles of `scores` at pre-set coverages. Both keep the promise within
    1 - confidence in simulation, the first with the weaker assumption: see guarantee.candidate_thresholds.
    `warnings` are kept in the policy, one line each, and so are `iou_rule`, by which the IoUs were measured,
    and the `device` and `precision` that computed the scores.
    With `draw_share`, above 0 to 1, the policy may grow (see growing): half of 1 - confidence is kept for
    that, and labelling draws at least that share of all masks.

    Raises PolicyError when the inputs are empty, differ in length or are out of range (a NaN IoU is an image
    without a labelled pixel: leave it out), no score is finite, or nothing is wanted; also
    where a policy that is to grow promises something else than a share of bad masks, or has groups.
    """
    score_values, ious = _checked_calibration(scores, image_ious)
    _check_wanted(target, class_targets, class_pixels, len(score_values))
    images = CalibrationImages(
        score_values,
        _acceptable(score_values, guards, class_confidences),
        ious,
        _checked_group(group, len(score_values)),
        class_pixels,
    )
    growth = None if draw_share is None else _growth(target, class_targets, per, images, draw_share)
    certified_with = float(confidence) if growth is None else (1 + confidence) / 2
    wanted = Wanted(target, tuple(class_targets), certified_with, promise_about, candidate_thresholds)
    certificate = certificate_of("", images, wanted)
    certificates = certificates_of(images, per_group, wanted)
    if per is not None:
        certificate = _unproven(certificate)
    display = _displayed(score_values, ious, group)
    policy = Policy(
        policy_id="",
        model_id=model_id,
        confidence=float(confidence),
        guards=tuple(guards),
        display_scores=display.scores,
        display_values=display.values,
        calibration_error=display.error,
        calibration_error_floor=display.floor,
        calibration_fingerprint=calibration_fingerprint,
        created_at=created_at,
        model_digest=model_digest,
        warnings=tuple(warnings),
        iou_rule=iou_rule,
        group_by=group_by,
        promises_about=None if group is None else promise_about,
        per=per,
        certificates=certificates,
        growth=growth,
        device=device,
        precision=precision,
        **certificate.of_policy,
    )
    return sealed(policy)


def check_groups_can_grow(group: Sequence[str] | NDArray[np.str_] | None) -> None:
    """Raises PolicyError where images (one entry each) share a group."""
    if group is not None and len(set(group)) < len(group):
        raise PolicyError(
            "a promise that counts each group of images once cannot grow: masks are drawn and counted one by "
            "one; calibrate without --grow, or on one image of each group"
        )


def _growth(
    target: BadFraction | MeanLoss | None,
    class_targets: Sequence[ClassTarget],
    per: str | None,
    images: CalibrationImages,
    draw_share: float,
) -> Growth:
    if not isinstance(target, BadFraction) or class_targets or per is not None:
        raise PolicyError(
            "only a promise about the share of bad masks can grow: not one about a mean loss, about classes "
            "or for each group"
        )
    check_groups_can_grow(images.group)
    if not 0 < draw_share <= 1:
        raise PolicyError(f"draw share {draw_share} is outside (0, 1]: 0.02 is a usual choice")
    thresholds = guarantee.candidate_thresholds(images.acceptable, growing.COVERAGES)
    return Growth(thresholds, float(draw_share))


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
