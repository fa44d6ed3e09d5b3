"""How well a score orders images by the quality of their masks (selective prediction).

`losses` are one per image, 1 - mean IoU, lower is better; `scores` one per image, higher is surer. Images are
taken in order of falling score. Images of equal score count as if shuffled: every figure is the expected one,
so none depends on the order of the input. All functions raise ValueError for empty or unequal inputs and for
losses or scores that are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats], float]


@dataclass(frozen=True)
class SelectiveMetrics:
    """One score's figures of merit; `gap_closed` and `spearman` are NaN where they are undefined."""

    aurc: float
    e_aurc: float
    augrc: float
    gap_closed: float
    spearman: float


@dataclass(frozen=True)
class RiskCoverage:
    """For k = 1..n the share k/n of images and the mean loss of the k surest, both (n,)."""

    coverage: Floats
    risk: Floats


@dataclass(frozen=True)
class BootstrapDifference:
    """A metric's difference between two scores on the same images, with its interval at `confidence`."""

    difference: float
    low: float
    high: float
    confidence: float


def selective_metrics(losses: ArrayLike, scores: ArrayLike) -> SelectiveMetrics:
    """All figures of merit of one score."""
    return SelectiveMetrics(
        aurc=aurc(losses, scores),
        e_aurc=e_aurc(losses, scores),
        augrc=augrc(losses, scores),
        gap_closed=gap_closed(losses, scores),
        spearman=spearman(losses, scores),
    )


def risk_coverage_curve(losses: ArrayLike, scores: ArrayLike) -> RiskCoverage:
    """Mean loss of the k surest images for every k (El-Yaniv and Wiener 2010)."""
    accepted_losses = _losses_by_falling_score(losses, scores)
    counts = np.arange(1, len(accepted_losses) + 1)
    return RiskCoverage(coverage=counts / len(counts), risk=np.cumsum(accepted_losses) / counts)


def aurc(losses: ArrayLike, scores: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean over k of the mean loss of the k surest images.

    Geifman, Uziel and El-Yaniv 2019, "Bias-reduced uncertainty estimation". A random order's AURC is the mean
    loss.
    """
    return float(risk_coverage_curve(losses, scores).risk.mean())


def e_aurc(losses: ArrayLike, scores: ArrayLike) -> float:
    """Excess AURC: AURC less that of the oracle, which orders images by their true loss; 0 or more."""
    return aurc(losses, scores) - _oracle_aurc(losses)


def augrc(losses: ArrayLike, scores: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve: mean over k of (1/n) sum of the first k losses.

    Traub et al. 2024, "Overcoming common flaws in the evaluation of selective classification systems".
    """
    accepted_losses = _losses_by_falling_score(losses, scores)
    return float(np.cumsum(accepted_losses).mean() / len(accepted_losses))


def gap_closed(losses: ArrayLike, scores: ArrayLike) -> float:
    """Share of the way from a random to the oracle order: (AURC_random - AURC) / (AURC_random - AURC_oracle).

    1 is the oracle, 0 no better than chance, below 0 worse. NaN when all losses are equal (a single image
    included): then no order is better than another.
    """
    values = np.asarray(losses, dtype=np.float64)
    area = aurc(losses, scores)
    if np.ptp(values) == 0:
        return math.nan
    return float((values.mean() - area) / (values.mean() - _oracle_aurc(losses)))


def spearman(losses: ArrayLike, scores: ArrayLike) -> float:
    """Spearman rank correlation of score and quality, -1 to 1; NaN when either is constant."""
    checked_losses, checked_scores = _checked(losses, scores)
    if np.ptp(checked_losses) == 0 or np.ptp(checked_scores) == 0:
        return math.nan
    return float(stats.spearmanr(checked_scores, -checked_losses).statistic)


def risk_at_coverage(losses: ArrayLike, scores: ArrayLike, coverage: float) -> float:
    """Mean loss of the surest ceil(coverage * n) images; `coverage` in (0, 1], else ValueError."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage {coverage} is outside (0, 1]: give the share of images to accept")
    risk = risk_coverage_curve(losses, scores).risk
    accepted = math.ceil(coverage * len(risk) - 1e-9)  # 0.07 * 100 is 7.000000000000001
    return float(risk[max(accepted, 1) - 1])


def coverage_at_risk(losses: ArrayLike, scores: ArrayLike, risk: float) -> float:
    """Largest share of images, taken surest first, whose mean loss is at most `risk`; 0 if none."""
    curve = risk_coverage_curve(losses, scores)
    allowed = curve.coverage[curve.risk <= risk + 1e-12]
    return float(allowed.max(initial=0.0))


def paired_bootstrap(
    losses: ArrayLike,
    scores: ArrayLike,
    rival_scores: ArrayLike,
    metric: Metric,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapDifference:
    """Percentile bootstrap of metric(losses, scores) - metric(losses, rival_scores) over the images.

    Both scores see the same resampled images (Efron and Tibshirani 1993, chapter 13). `metric` is one of this
    module's. The interval is NaN when the metric is undefined on the whole sample; resamples on which it is
    undefined are left out.
    """
    checked_losses, checked_scores = _checked(losses, scores)
    _, checked_rivals = _checked(losses, rival_scores)

    def difference(chosen: NDArray[np.integer]) -> float:
        of_score = metric(checked_losses[chosen], checked_scores[chosen])
        return of_score - metric(checked_losses[chosen], checked_rivals[chosen])

    observed = difference(np.arange(len(checked_losses)))
    if math.isnan(observed):
        return BootstrapDifference(observed, math.nan, math.nan, confidence)
    draws = np.random.default_rng(seed).integers(len(checked_losses), size=(resamples, len(checked_losses)))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile([difference(chosen) for chosen in draws], [tail, 1 - tail])
    return BootstrapDifference(observed, float(low), float(high), confidence)


def _losses_by_falling_score(losses: ArrayLike, scores: ArrayLike) -> Floats:
    """Losses in order of falling score, each replaced by the mean of its tie group.

    Every curve here is linear in the losses, so this is exactly its expectation over random tie-breaking.
    """
    checked_losses, checked_scores = _checked(losses, scores)
    _, group, sizes = np.unique(-checked_scores, return_inverse=True, return_counts=True)
    group_means = np.bincount(group, weights=checked_losses) / sizes
    return np.repeat(group_means, sizes)


def _oracle_aurc(losses: ArrayLike) -> float:
    return aurc(losses, -np.asarray(losses, dtype=np.float64))


def _checked(losses: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    checked_losses = np.asarray(losses, dtype=np.float64)
    checked_scores = np.asarray(scores, dtype=np.float64)
    if checked_losses.ndim != 1 or checked_losses.shape != checked_scores.shape or not checked_losses.size:
        raise ValueError(
            f"losses {checked_losses.shape} and scores {checked_scores.shape}: give one of each per image"
        )
    if np.isnan(checked_losses).any() or np.isnan(checked_scores).any():
        raise ValueError("losses or scores hold NaN: leave out images that could not be measured")
    return checked_losses, checked_scores
