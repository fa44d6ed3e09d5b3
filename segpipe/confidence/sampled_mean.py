"""What a blind draw says about the mean loss of the masks it was drawn from, whatever they have in common.

Masks of one scene may fail together: that matters to what may be expected of other masks, not to a statement
about these masks, which rests on the draw alone. Where masks had different chances to be drawn each answer
stands for as many as its chance says. The bounds are Chernoff's for means of variables in 0..1 (Hoeffding
1963, theorem 1, which also holds without replacement: theorem 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq


@dataclass(frozen=True)
class Stratum:
    """Masks of which each had the same chance to be drawn.

    There are `masks` of them, which weigh `mass` together; `weights` (n,) are those of the answered ones
    (1 where each mask counts once), `losses` (n,) what these lose, 0 to 1.
    """

    masks: int
    mass: float
    weights: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def stands_for(self) -> NDArray[np.float64]:
        """The weight that each answer (n,) stands for."""
        return self.weights * (self.masks / max(len(self.losses), 1))


def sampled_mean(strata: Sequence[Stratum]) -> float | None:
    """The mean loss of all masks, estimated (Hajek); None without an answer."""
    stands_for = _joined([stratum.stands_for for stratum in strata])
    losses = _joined([stratum.losses for stratum in strata])
    return float(stands_for @ losses / stands_for.sum()) if losses.size else None


def sampled_bounds(strata: Sequence[Stratum], error: float) -> tuple[float, float]:
    """Bounds (lower, upper) of the mean loss of all masks; each is wrong with probability `error` at most.

    It is the draw that is random here, not the masks. Masks of which none was answered may lose nothing, or
    all; so may those that too few answers stand for to tell more.
    """
    used = _telling(strata, error)
    total = sum(stratum.mass for stratum in strata)
    losses = _joined([stratum.losses for stratum in used])
    if not losses.size:
        return 0.0, 1.0
    stands_for = _joined([stratum.stands_for for stratum in used])
    most, unknown = stands_for.max(), total - sum(stratum.mass for stratum in used)
    mean = min(float(stands_for @ losses / most) / len(losses), 1.0)
    scale = len(losses) * most / total
    lower = _mean_bound(mean, 0.0, len(losses), error) * scale
    upper = _mean_bound(mean, 1.0, len(losses), error) * scale + unknown / total
    return float(min(lower, 1.0)), float(min(upper, 1.0))


def answers_needed(mean: float, bound: float, error: float) -> int | None:
    """How many answers with this mean loss bring the upper bound down to `bound`; None when none would.

    That is of masks that all had the same chance to be drawn.
    """
    if mean >= bound:
        return None
    return math.ceil(-math.log(error) / divergence(mean, bound) - 1e-9)


def divergence(mean: float, bound: float) -> float:
    """Kullback and Leibler's divergence of the coins that fall with these two probabilities, in nats."""
    terms = ((mean, bound), (1 - mean, 1 - bound))
    return sum(found * math.log(found / wanted) if wanted else math.inf for found, wanted in terms if found)


def _telling(strata: Sequence[Stratum], error: float) -> list[Stratum]:
    """The strata without those that would do least harm as unknown ones, judged without their losses.

    A few masks that are hardly ever drawn would else make all answers stand for little.
    """
    answered = sorted((one for one in strata if one.losses.size), key=lambda one: one.stands_for.max())
    total = sum(stratum.mass for stratum in strata)

    def at_best(kept: list[Stratum]) -> float:
        """The upper bound if nothing were lost."""
        n = sum(len(stratum.losses) for stratum in kept)
        unknown = total - sum(stratum.mass for stratum in kept)
        return (n * kept[-1].stands_for.max() * -math.expm1(math.log(error) / n) + unknown) / total

    choices = [answered[: n + 1] for n in range(len(answered))]
    return min(choices, key=at_best, default=[])


def _mean_bound(mean: float, end: float, n: int, error: float) -> float:
    """The farthest from `mean`, towards `end`, 0 or 1, that n variables do not refute at `error`."""

    def surplus(bound: float) -> float:
        return n * divergence(mean, bound) + math.log(error)

    if mean == end:
        return end
    return brentq(surplus, mean, end)


def _joined(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.empty(0), *arrays])
