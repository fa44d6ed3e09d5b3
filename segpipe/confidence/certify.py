"""From labelled images to a policy: the threshold certified, the score's display map fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.confidence import guarantee
from segpipe.confidence.arithmetic import N_QUANTILES
from segpipe.confidence.calibration_error import cross_validated_error
from segpipe.confidence.display import fit_display_map
from segpipe.confidence.guarantee import Certificate, MeanLossCertificate
from segpipe.confidence.policy import (
    BadFractionPromise,
    ClassGuard,
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
class _Display:
    """The map from scores to the confidence that is shown, and how far that lies from the true IoU."""

    scores: tuple[float, ...]
    values: tuple[float, ...]
    error: float | None


def make_policy(
    scores: ArrayLike,
    image_ious: ArrayLike,
    model_id: str,
    target: BadFraction | MeanLoss,
    confidence: float,
    calibration_fingerprint: str,
    created_at: str,
    *,
    candidate_thresholds: ArrayLike | None = None,
    group: Sequence[str] | None = None,
    guards: Sequence[ClassGuard] = (),
    class_confidences: ArrayLike | None = None,
    model_digest: str | None = None,
    warnings: Sequence[str] = (),
    iou_rule: IouRule | None = None,
) -> Policy:
    """Certify a threshold on labelled images and fit the score's display map.

    `scores` (n,) are raw discriminator scores, `image_ious` (n,) each mask's mean IoU, 0 to 1; a mask is bad
    when its IoU is below the target's minimum. `group` (n,) names what each image belongs to (see
    guarantee.certify). `guards` need `class_confidences` (n, K), 0 to 1, NaN for a class not in the mask: an
    image that a guard holds back counts as not accepted, so the promise is about what is accepted really.
    `candidate_thresholds` may come from any images but these images' labels: best from the scores of other
    images; by default they are quantiles of `scores` at pre-set coverages. Both keep the promise within
    1 - confidence in simulation, the first with the weaker assumption: see guarantee.candidate_thresholds.
    `warnings` are kept in the policy, one line each, and so is `iou_rule`, by which the IoUs were measured.

    Raises PolicyError when the inputs are empty, differ in length or are out of range (a NaN IoU is an image
    without a labelled pixel: leave it out), or no score is finite.
    """
    score_values, ious = _checked_calibration(scores, image_ious)
    drawn = _one_per_group(len(score_values), group)
    score_quantiles = _quantiles(score_values[drawn])
    acceptable = _acceptable(score_values, guards, class_confidences)
    if candidate_thresholds is None:
        candidate_thresholds = _quantile_thresholds(acceptable[drawn], target, confidence)
    promised, certificate = _certified(
        target, acceptable[drawn], ious[drawn], candidate_thresholds, confidence
    )
    display = _displayed(score_values, ious, group)
    policy = Policy(
        policy_id="",
        model_id=model_id,
        promised=promised,
        confidence=certificate.confidence,
        threshold=certificate.threshold,
        accepted=certificate.accepted,
        p_value=certificate.p_value,
        n_calibration=certificate.n_calibration,
        n_images=len(score_values),
        labelled_images_needed=certificate.labelled_images_needed,
        guards=tuple(guards),
        score_quantiles=score_quantiles,
        display_scores=display.scores,
        display_values=display.values,
        calibration_error=display.error,
        calibration_fingerprint=calibration_fingerprint,
        created_at=created_at,
        model_digest=model_digest,
        warnings=tuple(warnings),
        held_back=int(np.isneginf(acceptable[drawn]).sum()),
        iou_rule=iou_rule,
    )
    return sealed(policy)


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


def _one_per_group(n_images: int, group: Sequence[str] | None) -> NDArray[np.int64]:
    if group is None:
        return np.arange(n_images)
    if len(group) != n_images:
        raise PolicyError(f"{n_images} scores and {len(group)} group labels differ: give one label per image")
    return guarantee.one_per_group(group)


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
) -> tuple[BadFractionPromise, Certificate] | tuple[MeanLossPromise, MeanLossCertificate]:
    match target:
        case BadFraction(min_iou, limit):
            if not 0 < min_iou <= 1:
                raise PolicyError(f"min IoU {min_iou} is outside (0, 1]: 0.6 is a usual choice")
            counted = guarantee.certify(scores, ious < min_iou, thresholds, limit, confidence)
            return BadFractionPromise(float(min_iou), counted.max_bad_fraction, counted.bad), counted
        case MeanLoss(limit):
            averaged = guarantee.certify_mean_loss(scores, 1 - ious, thresholds, limit, confidence)
            return MeanLossPromise(averaged.max_mean_loss, averaged.mean_loss), averaged


def _quantiles(scores: NDArray[np.float64]) -> tuple[float, ...]:
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        raise PolicyError(
            "no calibration image has a finite score: calibrate on at least one image it can judge"
        )
    return tuple(np.quantile(finite, np.linspace(0, 1, N_QUANTILES)).tolist())
