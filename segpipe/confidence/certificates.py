"""What calibration images prove: one threshold that keeps all that is wanted of masks and of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.confidence import guarantee, whole_groups
from segpipe.confidence.arithmetic import N_QUANTILES
from segpipe.confidence.class_test import (
    ClassPromiseKind,
    ThresholdBound,
    mistakes,
    p_value,
    threshold_bound,
)
from segpipe.confidence.policy import (
    BadFractionPromise,
    ClassesOnly,
    ClassPromise,
    GroupCertificate,
    MaskPromise,
    MeanLossPromise,
)
from segpipe.confidence.whole_groups import PromiseAbout
from segpipe.errors import PolicyError


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
class CalibrationImages:
    """n calibration images: scores, the same with -inf for what no threshold accepts, IoUs: (n,) each."""

    scores: NDArray[np.float64]
    acceptable: NDArray[np.float64]
    ious: NDArray[np.float64]
    group: NDArray[np.str_] | None
    pixels: ClassPixels | None


@dataclass(frozen=True)
class Wanted:
    """What is to be promised, at once."""

    masks: BadFraction | MeanLoss | None
    classes: tuple[ClassTarget, ...]
    confidence: float
    about: PromiseAbout
    candidate_thresholds: ArrayLike | None


@dataclass(frozen=True)
class _OfMasks:
    """The loosest threshold that keeps the promise about masks, None when none does, and its evidence.

    whole_groups: so many groups were used whole; None: the images that were drawn.
    """

    promised: MaskPromise
    threshold: float | None
    p_value: float
    labelled_images_needed: int | None
    whole_groups: int | None = None


@dataclass(frozen=True)
class _OfClass:
    """The images that a promise about a class counts (rows), those with a wrong mask, what that allows."""

    target: ClassTarget
    acceptable: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    bound: ThresholdBound


def certificates_of(
    images: CalibrationImages, per_group: Sequence[str | None], wanted: Wanted
) -> tuple[GroupCertificate, ...]:
    """One of each group, in the order of their names; of a group without a finite score there is none."""
    if not any(per_group):
        return ()
    groups = np.asarray([name or "" for name in per_group])
    rows = [np.flatnonzero(groups == name) for name in np.unique(groups) if name]
    return tuple(
        certificate_of(str(groups[of_group[0]]), _some(images, of_group), wanted)
        for of_group in rows
        if np.isfinite(images.scores[_drawn(of_group, images.group, wanted.about)]).any()
    )


def _some(images: CalibrationImages, rows: NDArray[np.int64]) -> CalibrationImages:
    pixels = images.pixels
    return CalibrationImages(
        images.scores[rows],
        images.acceptable[rows],
        images.ious[rows],
        None if images.group is None else images.group[rows],
        None if pixels is None else ClassPixels(pixels.true[rows], pixels.shown[rows]),
    )


def certificate_of(name: str, images: CalibrationImages, wanted: Wanted) -> GroupCertificate:
    """What the images prove, with one threshold for all that is wanted."""
    drawn = _drawn(np.arange(len(images.scores)), images.group, wanted.about)
    score_quantiles, acceptable = _quantiles(images.scores[drawn]), images.acceptable[drawn]
    classes = [_of_class(one, images, wanted) for one in wanted.classes]
    lowest = max((one.bound.above for one in classes), default=-math.inf)
    masks = _of_masks(wanted, images, drawn, lowest)
    counted = acceptable if masks.whole_groups is None else images.acceptable
    promises = tuple(_class_promise(one, masks.threshold, acceptable) for one in classes)
    return GroupCertificate(
        group=name,
        promised=masks.promised,
        threshold=masks.threshold,
        accepted=0 if masks.threshold is None else int((counted >= masks.threshold).sum()),
        p_value=max((one.p_value for one in promises), default=1.0)
        if isinstance(masks.promised, ClassesOnly)
        else masks.p_value,
        n_calibration=len(drawn),
        n_images=len(images.scores),
        labelled_images_needed=masks.labelled_images_needed,
        held_back=int(np.isneginf(acceptable).sum()),
        largest_group=_largest(images.group) if wanted.about == "masks" else None,
        whole_groups=masks.whole_groups,
        score_quantiles=score_quantiles,
        class_promises=promises,
    )


def _of_class(target: ClassTarget, images: CalibrationImages, wanted: Wanted) -> _OfClass:
    assert images.pixels is not None  # checked with the targets
    true, shown = (of[:, target.class_index] for of in (images.pixels.true, images.pixels.shown))
    found = mistakes(target.kind, true, shown, target.min_object_px)
    rows = _drawn(np.flatnonzero(found.concerned), images.group, wanted.about)
    wrong, acceptable = found.wrong[rows], images.acceptable[rows]
    bound = threshold_bound(acceptable[wrong], len(rows), target.max_share, wanted.confidence)
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


def _of_masks(wanted: Wanted, images: CalibrationImages, drawn: NDArray[np.int64], lowest: float) -> _OfMasks:
    """The loosest threshold above `lowest` that keeps the promise about masks, if there is to be one."""
    acceptable = images.acceptable[drawn]
    if wanted.masks is None:
        return _above(_candidates(wanted, acceptable), lowest, acceptable)
    if images.group is not None and _are_used_whole(images.group, wanted.masks, wanted):
        limit = _limit(wanted.masks)[1]
        candidates = _whole_group_candidates(images.group, images.acceptable, wanted, limit)
        certified = partial(_certified_whole, wanted.masks, images, images.group, wanted)
    else:
        candidates = _candidates(wanted, acceptable)
        certified = partial(_certified, wanted.masks, acceptable, images.ious[drawn], wanted.confidence)
    alone = certified(candidates)
    if alone.threshold is None or alone.threshold > lowest:
        return alone
    together = certified([candidate for candidate in candidates if candidate > lowest])
    return replace(together, labelled_images_needed=0)  # of masks: it is a class that wants more


def _are_used_whole(group: NDArray[np.str_], masks: BadFraction | MeanLoss, wanted: Wanted) -> bool:
    guarantee.check_target(*_limit(masks), wanted.confidence)
    return whole_groups.are_enough(_sizes(group), wanted.about, _limit(masks)[1], wanted.confidence)


def _sizes(group: NDArray[np.str_]) -> NDArray[np.int64]:
    return np.unique(group, return_counts=True)[1]


def _whole_group_candidates(
    group: NDArray[np.str_], acceptable: NDArray[np.float64], wanted: Wanted, limit: float
) -> tuple[float, ...]:
    if wanted.candidate_thresholds is not None:
        return _candidates(wanted, acceptable)
    worth = whole_groups.worth(_sizes(group), wanted.about)
    start = whole_groups.first_coverage(len(_sizes(group)), worth, limit, wanted.confidence)
    assert start is not None  # there are enough
    return whole_groups.whole_group_thresholds(acceptable, start)


def _limit(masks: BadFraction | MeanLoss) -> tuple[str, float]:
    match masks:
        case BadFraction():
            return "max bad fraction", masks.max_bad_fraction
        case MeanLoss():
            return "max mean loss", masks.max_mean_loss


def _certified_whole(
    masks: BadFraction | MeanLoss,
    images: CalibrationImages,
    group: NDArray[np.str_],
    wanted: Wanted,
    thresholds: Sequence[float],
) -> _OfMasks:
    losses, limit = _losses(masks, images.ious), _limit(masks)[1]
    found = whole_groups.certify_whole_groups(
        images.acceptable, losses, group, wanted.about, tuple(thresholds), limit, wanted.confidence
    )
    lost = None if found.threshold is None else losses[images.acceptable >= found.threshold]
    return _OfMasks(
        _promised(masks, lost),
        found.threshold,
        found.p_value,
        found.labelled_groups_needed,
        len(_sizes(group)),
    )


def _promised(masks: BadFraction | MeanLoss, lost: NDArray[np.float64] | None) -> MaskPromise:
    """What is promised, with the losses found among the accepted; None where nothing is accepted."""
    match masks:
        case BadFraction(min_iou, limit):
            return BadFractionPromise(float(min_iou), float(limit), None if lost is None else int(lost.sum()))
        case MeanLoss(limit):
            return MeanLossPromise(float(limit), None if lost is None else float(lost.mean()))


def _losses(masks: BadFraction | MeanLoss, ious: NDArray[np.float64]) -> NDArray[np.float64]:
    match masks:
        case BadFraction(min_iou):
            _check_min_iou(min_iou)
            return (ious < min_iou).astype(np.float64)
        case MeanLoss():
            return 1 - ious


def _check_min_iou(min_iou: float) -> None:
    if not 0 < min_iou <= 1:
        raise PolicyError(f"min IoU {min_iou} is outside (0, 1]: 0.6 is a usual choice")


def _above(candidates: Sequence[float], lowest: float, acceptable: NDArray[np.float64]) -> _OfMasks:
    surest = acceptable.max(initial=-math.inf)
    allowed = [candidate for candidate in candidates if lowest < candidate <= surest]
    return _OfMasks(ClassesOnly(), min(allowed, default=None), 1.0, 0 if allowed else None)


def _candidates(wanted: Wanted, acceptable: NDArray[np.float64]) -> tuple[float, ...]:
    """The thresholds to choose from; for promises about classes alone any will do, so all scores."""
    if wanted.candidate_thresholds is not None:
        return tuple(np.asarray(wanted.candidate_thresholds, dtype=np.float64).ravel().tolist())
    if wanted.masks is None:
        return tuple(np.unique(acceptable[np.isfinite(acceptable)]).tolist())
    return _quantile_thresholds(acceptable, wanted.masks, wanted.confidence)


def _drawn(rows: NDArray[np.int64], group: NDArray[np.str_] | None, about: PromiseAbout) -> NDArray[np.int64]:
    """All of the rows, or one of each group among them; for a random mask, of groups kept by their size."""
    if group is None or not rows.size:
        return rows
    draw = guarantee.one_per_group if about == "groups" else guarantee.one_per_group_by_size
    return rows[draw(group[rows].tolist())]


def _largest(group: NDArray[np.str_] | None) -> int | None:
    return None if group is None else int(_sizes(group).max())


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
    confidence: float,
    thresholds: ArrayLike,
) -> _OfMasks:
    losses = _losses(target, ious)
    match target:
        case BadFraction(min_iou, limit):
            counted = guarantee.certify(scores, losses, thresholds, limit, confidence)
            promised = BadFractionPromise(float(min_iou), counted.max_bad_fraction, counted.bad)
            return _OfMasks(promised, counted.threshold, counted.p_value, counted.labelled_images_needed)
        case MeanLoss(limit):
            averaged = guarantee.certify_mean_loss(scores, losses, thresholds, limit, confidence)
            lost = MeanLossPromise(averaged.max_mean_loss, averaged.mean_loss)
            return _OfMasks(lost, averaged.threshold, averaged.p_value, averaged.labelled_images_needed)


def _quantiles(scores: NDArray[np.float64]) -> tuple[float, ...]:
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        raise PolicyError(
            "no calibration image has a finite score: calibrate on at least one image it can judge"
        )
    return tuple(np.quantile(finite, np.linspace(0, 1, N_QUANTILES)).tolist())
