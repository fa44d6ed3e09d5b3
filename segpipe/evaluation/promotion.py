"""`segpipe promote`: a new model replaces the old one only when it is better on images neither has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe import storage
from segpipe.confidence.betting import betting_p_value
from segpipe.confidence.looks import comparison_level
from segpipe.config import PromoteSettings
from segpipe.datasets import Sample, fingerprint, list_samples, open_dataset
from segpipe.errors import DatasetError, ModelError
from segpipe.evaluation.measure import measure_split
from segpipe.evaluation.spent import Question, Spent, spend
from segpipe.groups import image_groups
from segpipe.models import promotion_line
from segpipe.models.labeler import Labeler, load_model
from segpipe.redaction import redact
from segpipe.training.learnt_images import image_digests, seen_images

FEWEST = 30  # images, or groups of them: of fewer not even chance can be told
COMPARISONS = "comparisons"  # below a line
STEPS = 40  # of a bisection: the bound to 12 digits


@dataclass(frozen=True)
class Comparison:
    """Paired: n images (or groups of them), mean IoU of both models, their mean difference, its one-sided
    lower bound at `confidence` (never above the difference), and the p-value against "no better".

    It is the comparison_number-th of a candidate on such images; `confidence` is that of this one, and all of
    them together have the one that was asked for.
    """

    n: int
    old_mean_iou: float
    new_mean_iou: float
    difference: float
    lower_bound: float
    confidence: float
    p_value: float
    comparison_number: int

    @property
    def is_better(self) -> bool:
        """Whether the new model is shown to be better."""
        return self.lower_bound > 0


@dataclass(frozen=True)
class _Paired:
    """IoUs (n,) of the same images, or groups of them (unit), under both models.

    images: digests of their pixels; groups: the group of each image, its key where there are none.
    """

    old: NDArray[np.float64]
    new: NDArray[np.float64]
    unit: Literal["images", "groups"]
    images: frozenset[str]
    groups: tuple[str, ...]


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

    A promotion that was killed has happened or has not; a comparison that was made counts, and the same again
    is no further one. Of two promotions at once each is compared by itself, and one of them stands.
    Raises ModelError (a candidate without a policy, or the same model), DatasetError (a split that the
    candidate has learnt from, or of too few images), StorageError.
    """
    last = promotion_line.last_number(settings.line)
    history = promotion_line.promotions(settings.line)
    candidate = load_model(settings.candidate, settings.device)
    _require_promise(candidate, settings.candidate)
    dataset = open_dataset(settings.data)
    samples = list_samples(dataset, settings.split)
    digests = image_digests(dataset, samples)
    _require_unseen(settings, samples, digests)
    if not history:
        return _take(settings, candidate, None, "the first of its line", None, last)
    current = history[-1]
    if current.model_id == candidate.model_id and current.model == storage.normalise(settings.candidate):
        raise ModelError(
            f"{settings.line} stands for {settings.candidate} already, since {current.promoted_at} "
            f"({current.reason}): train another candidate"
        )
    by_key = {sample.key: digest for sample, digest in zip(samples, digests, strict=True)}
    paired = _measure(load_model(current.model, settings.device), candidate, settings, by_key)
    spent = _spend(settings, current, candidate, history, paired)
    comparison = compare_paired(paired.old, paired.new, spent, settings.seed)
    number = _number(comparison)
    if not comparison.is_better:
        reason = (
            f"not shown to be better: mean IoU {comparison.difference:+.4f}, at least "
            f"{comparison.lower_bound:+.4f} with {_percent(comparison.confidence)} confidence{number}"
        )
        return _result(settings, candidate, current, reason, comparison, promoted=False)
    over = f"on {comparison.n} {paired.unit} of split {settings.split}"
    reason = f"mean IoU {comparison.difference:+.4f} {over}{number}"
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


def compare_paired(old: NDArray[np.float64], new: NDArray[np.float64], spent: Spent, seed: int) -> Comparison:
    """IoUs (n,) of the same images under both models, n > 0; tested at the error that is spent on it.

    By betting on the differences, mapped from -1..1 to losses from 1 to 0: valid at every n, whatever their
    distribution. A bootstrap, t (also with Johnson's correction for skewness) and sign flips are not: a model
    that gains 0.02 on 19 of 20 images and loses 0.38 on the others, on average nothing, is better to them
    whenever no such image is among those compared (benchmarks/promotion.py). The price: all gains together
    must be some 4 for a first comparison, such as 0.03 on each of 132 images. The images come in an order
    shuffled beforehand.
    """
    confidence, difference = 1 - spent.level, float((new - old).mean())
    losses = (1 - np.random.default_rng(seed).permutation(new - old)) / 2
    return Comparison(
        n=len(losses),
        old_mean_iou=float(old.mean()),
        new_mean_iou=float(new.mean()),
        difference=difference,
        lower_bound=min(_lower_bound(losses, confidence), difference),
        confidence=confidence,
        p_value=betting_p_value(losses, 0.5, confidence),
        comparison_number=spent.number,
    )


def _lower_bound(losses: NDArray[np.float64], confidence: float) -> float:
    """The largest mean difference that the test rejects, by bisection: its p-value does not fall with it."""
    rejected, kept = -1.0, 1.0
    for _ in range(STEPS):
        middle = (rejected + kept) / 2
        if betting_p_value(losses, (1 - middle) / 2, confidence) <= 1 - confidence:
            rejected = middle
        else:
            kept = middle
    return rejected


def _measure(old: Labeler, new: Labeler, settings: PromoteSettings, digests: Mapping[str, str]) -> _Paired:
    """Both models on the same split, image by image, by the new one's rule of what an image's IoU is.

    `digests` are those of the images' pixels, by key. DatasetError for fewer than 30 images, or groups.
    """
    every_key = list(digests)
    named = image_groups(open_dataset(settings.data), every_key, settings.group_by)
    group_of = dict(zip(every_key, named or every_key, strict=True))
    measured = [measure_split(labeler, settings.data, settings.split, new.iou_rule) for labeler in (old, new)]
    known = ~np.isnan(measured[0].image_ious)  # the same truths for both, so the same images have none
    keys = [key for key, is_known in zip(measured[0].keys, known, strict=True) if is_known]
    groups = [group_of[key] for key in keys]
    unit: Literal["images", "groups"] = "images" if named is None else "groups"
    if (count := len(set(groups))) < FEWEST:
        raise DatasetError(
            f"split {settings.split} of {settings.data} has {count} {unit} with a labelled pixel: fewer than "
            f"{FEWEST} cannot show that a model is better; label more, or compare on another split"
        )
    old_ious, new_ious = (_mean_by_group(one.image_ious[known], groups) for one in measured)
    return _Paired(old_ious, new_ious, unit, frozenset(digests[key] for key in keys), tuple(groups))


def _spend(
    settings: PromoteSettings,
    current: promotion_line.Promotion,
    candidate: Labeler,
    history: Sequence[promotion_line.Promotion],
    paired: _Paired,
) -> Spent:
    """Enter the comparison into the line's ledger, before anyone knows its result.

    Promotions by a segpipe that kept no ledger count, where they were compared on the same split.
    """
    measured_on = fingerprint(open_dataset(settings.data), settings.split)
    earlier = sum(
        entry.evidence.get("fingerprint") == measured_on
        and "lower_bound" in entry.evidence
        and "comparison_number" not in entry.evidence
        for entry in history
    )
    asked = {
        "current": current.model_id,
        "candidate": candidate.digest,
        "fingerprint": measured_on,
        "groups": paired.groups,
        "confidence": settings.confidence,
        "seed": settings.seed,
    }
    folder = storage.join(storage.normalise(settings.line), COMPARISONS)
    about = f"{redact(settings.candidate)} ({candidate.model_id}) against {current.model_id}"
    spent = spend(
        folder,
        Question("line", about, asked, paired.images),
        lambda number: comparison_level(number + earlier, settings.confidence),
    )
    return replace(spent, number=spent.number + earlier)


def _number(comparison: Comparison) -> str:
    number = comparison.comparison_number
    return "" if number == 1 else f"; comparison {number} on such images, each tested more strictly"


def _percent(share: float) -> str:
    return f"{share:.4%}".rstrip("0%").rstrip(".") + "%"


def _mean_by_group(ious: NDArray[np.float64], groups: list[str]) -> NDArray[np.float64]:
    """One figure per group: frames of one sequence are one observation."""
    pairs = sorted(zip(groups, ious.tolist(), strict=True))
    return np.array(
        [np.mean([iou for _, iou in of_group]) for _, of_group in groupby(pairs, lambda pair: pair[0])]
    )


def _require_promise(candidate: Labeler, url: str) -> None:
    if candidate.policy is None or not candidate.policy.accepts_some:
        raise ModelError(f"{url} has no policy that accepts anything: run `segpipe calibrate` on it first")


def _require_unseen(settings: PromoteSettings, samples: Sequence[Sample], digests: Sequence[str]) -> None:
    """What the candidate was trained on would flatter it."""
    seen = seen_images(storage.normalise(settings.candidate))
    found = (sample for sample, digest in zip(samples, digests, strict=True) if digest in seen)
    if (first := next(found, None)) is not None:
        raise DatasetError(
            f"{first.image_uri} is among the images {settings.candidate} was trained on: compare on a split "
            "that no model learns from"
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
