"""`segpipe promote`: a new model replaces the old one only when it is better on images neither has seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segpipe import storage
from segpipe.config import PromoteSettings
from segpipe.datasets import fingerprint, list_samples, open_dataset
from segpipe.errors import DatasetError, ModelError
from segpipe.evaluation.measure import measure_split
from segpipe.groups import image_groups
from segpipe.models import promotion_line
from segpipe.models.labeler import Labeler, load_model
from segpipe.redaction import redact
from segpipe.training.learnt_images import first_seen, seen_images

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Paired: n images (or groups of them), mean IoU of both models, their mean difference and its one-sided
    lower bound at `confidence`, by a bootstrap over images."""

    n: int
    old_mean_iou: float
    new_mean_iou: float
    difference: float
    lower_bound: float
    confidence: float


@dataclass(frozen=True)
class PromotionResult:
    """What became of a candidate; comparison is None for the first of a line, which has no rival."""

    promoted: bool
    line: str
    model: str
    model_id: str
    replaces: str | None
    reason: str
    comparison: Comparison | None


def promote(settings: PromoteSettings) -> PromotionResult:
    """Compare the candidate with the line's model on a split, and let the line stand for it if it is better.

    A promotion that was killed has happened or has not. Raises ModelError (a candidate without a policy, or
    the same model), DatasetError (a split that the candidate has learnt from), StorageError.
    """
    last = promotion_line.last_number(settings.line)
    history = promotion_line.promotions(settings.line)
    candidate = load_model(settings.candidate, settings.device)
    _require_promise(candidate, settings.candidate)
    _require_unseen(settings)
    if not history:
        return _take(settings, candidate, None, "the first of its line", None, last)
    current = history[-1]
    if current.model_id == candidate.model_id and current.model == storage.normalise(settings.candidate):
        raise ModelError(
            f"{settings.line} stands for {settings.candidate} already, since {current.promoted_at} "
            f"({current.reason}): train another candidate"
        )
    comparison = compare(load_model(current.model, settings.device), candidate, settings)
    if comparison.lower_bound <= 0:
        reason = (
            f"not shown to be better: mean IoU {comparison.difference:+.4f}, at least "
            f"{comparison.lower_bound:+.4f} with {comparison.confidence:.0%} confidence"
        )
        return _result(settings, candidate, current, reason, comparison, promoted=False)
    reason = f"mean IoU {comparison.difference:+.4f} on {comparison.n} images of split {settings.split}"
    return _take(settings, candidate, current, reason, comparison, last)


def go_back(url: str) -> promotion_line.Promotion:
    """Let a line stand again for the model before the present one, each time one further back.

    Raises ModelError: there is none.
    """
    last = promotion_line.last_number(url)
    history = promotion_line.promotions(url)
    earlier = [entry for entry in promotion_line.standing(history) if entry.model_id != history[-1].model_id]
    if not earlier:
        raise ModelError(f"{url} has no earlier model to go back to: promote one first")
    load_model(earlier[-1].model, "cpu")  # it must be there and whole
    back = promotion_line.Promotion(
        earlier[-1].model, earlier[-1].model_id, f"back from {history[-1].model_id}", {}, _now()
    )
    promotion_line.promote(url, back, last)
    return back


def compare(old: Labeler, new: Labeler, settings: PromoteSettings) -> Comparison:
    """Both models on the same split, image by image, by the new one's rule of what an image's IoU is."""
    dataset = open_dataset(settings.data)
    every_key = [sample.key for sample in list_samples(dataset, settings.split)]
    group_of = dict(
        zip(every_key, image_groups(dataset, every_key, settings.group_by) or every_key, strict=True)
    )
    measured = [measure_split(labeler, settings.data, settings.split, new.iou_rule) for labeler in (old, new)]
    known = ~np.isnan(measured[0].image_ious)  # the same truths for both, so the same images have none
    keys = [key for key, is_known in zip(measured[0].keys, known, strict=True) if is_known]
    if len(keys) < 2:
        raise DatasetError(f"split {settings.split} has {len(keys)} usable images: compare on some dozens")
    groups = [group_of[key] for key in keys]
    old_ious, new_ious = (_mean_by_group(one.image_ious[known], groups) for one in measured)
    return compare_paired(old_ious, new_ious, settings.confidence, settings.seed)


def compare_paired(
    old: NDArray[np.float64], new: NDArray[np.float64], confidence: float, seed: int
) -> Comparison:
    """IoUs (n,) of the same images under both models, n > 1.

    The bound is the BCa bootstrap's (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
    chapter 14) for the mean of the differences.
    """
    differences = new - old
    return Comparison(
        n=len(differences),
        old_mean_iou=float(old.mean()),
        new_mean_iou=float(new.mean()),
        difference=float(differences.mean()),
        lower_bound=_lower_bound(differences, confidence, seed),
        confidence=confidence,
    )


def _lower_bound(differences: NDArray[np.float64], confidence: float, seed: int) -> float:
    if np.ptp(differences) == 0:  # nothing to resample
        return float(differences[0])
    found = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        alternative="greater",
        method="BCa",
        rng=np.random.default_rng(seed),
        batch=1000,
    )
    return float(found.confidence_interval.low)


def _mean_by_group(ious: NDArray[np.float64], groups: list[str]) -> NDArray[np.float64]:
    """One figure per group: frames of one sequence are one observation."""
    pairs = sorted(zip(groups, ious.tolist(), strict=True))
    return np.array(
        [np.mean([iou for _, iou in of_group]) for _, of_group in groupby(pairs, lambda pair: pair[0])]
    )


def _require_promise(candidate: Labeler, url: str) -> None:
    if candidate.policy is None or not candidate.policy.accepts_some:
        raise ModelError(f"{url} has no policy that accepts anything: run `segpipe calibrate` on it first")


def _require_unseen(settings: PromoteSettings) -> None:
    """What the candidate was trained on would flatter it."""
    dataset = open_dataset(settings.data)
    samples = list_samples(dataset, settings.split)
    if uri := first_seen(dataset, samples, seen_images(storage.normalise(settings.candidate))):
        raise DatasetError(
            f"{uri} is among the images {settings.candidate} was trained on: compare on a split that no "
            "model learns from"
        )


def _take(
    settings: PromoteSettings,
    candidate: Labeler,
    current: promotion_line.Promotion | None,
    reason: str,
    comparison: Comparison | None,
    after: int,
) -> PromotionResult:
    evidence = {
        "data": redact(settings.data),
        "split": settings.split,
        "fingerprint": fingerprint(open_dataset(settings.data), settings.split),
        **(asdict(comparison) if comparison else {}),
    }
    model = storage.normalise(settings.candidate)
    promotion_line.promote(
        settings.line, promotion_line.Promotion(model, candidate.model_id, reason, evidence, _now()), after
    )
    return _result(settings, candidate, current, reason, comparison, promoted=True)


def _result(
    settings: PromoteSettings,
    candidate: Labeler,
    current: promotion_line.Promotion | None,
    reason: str,
    comparison: Comparison | None,
    promoted: bool,
) -> PromotionResult:
    return PromotionResult(
        promoted=promoted,
        line=settings.line,
        model=settings.candidate,
        model_id=candidate.model_id,
        replaces=current.model_id if current else None,
        reason=reason,
        comparison=comparison,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
