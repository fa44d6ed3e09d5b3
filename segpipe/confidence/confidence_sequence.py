"""A mean of losses, watched without end: evidence that it is too large, and an interval to read every day.

Betting as in Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting": several
gamblers stake a fixed share each (their "diversified Kelly" bets), and the capital of all together is the
evidence. Against a mean that is too large only from some day on, part of the capital starts anew at every
loss: a mixture over start times, the Shiryaev-Roberts e-detector of Shin, Ramdas and Rinaldo 2023,
"E-detectors", with weights that sum to one, so that the probability of a false alarm, ever, is bounded and
not only its rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

# Shares of what a gambler may stake at most; each suits another distance of the mean from the bound.
BETS = np.array([0.9, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])
SMALLEST_BOUND = 1e-9
MOST_CONSIDERED = 8192  # beyond so many losses the answer is no advice

Values = NDArray[np.float64]
Reserves = Callable[[int], Values]


def p_values_above(losses: ArrayLike, bound: float) -> Values:
    """P-values (n,) after each loss against "the mean was never above `bound`"; they never rise.

    `losses` (n,) are 0 to 1, in an order fixed without looking at them; `bound` is in (0, 1). If no loss
    had, given those before it, an expectation above the bound, then any of them, however many there will be,
    is ever p or less with a probability of at most p (Ville's inequality). The mean may have risen
    at any of the losses: there is no need to guess when.
    """
    return _running_p_values(_log_capital(np.asarray(losses, dtype=np.float64), bound, _reserves))


def mean_interval(losses: ArrayLike, confidence: float) -> tuple[float, float]:
    """Interval (lower, upper) for the mean of `losses` (n,), 0 to 1, at `confidence`, in (0, 1).

    Half of 1 - confidence goes to each side. With that confidence the interval after the first, second, ...,
    last loss holds at once, so it may be looked at after each; it only ever narrows. If the mean changes on
    the way, then it was above `lower` at some time, and below `upper` at some time.
    """
    values, error = np.asarray(losses, dtype=np.float64), (1 - confidence) / 2
    lower = _largest_refuted(values, error, _reserves)
    upper = 1 - _largest_refuted(1 - values, error, _no_reserve)
    return lower, max(lower, upper)  # they cross when the mean has risen far: then the lower one tells


def losses_until_below(losses: ArrayLike, bound: float, confidence: float) -> int | None:
    """How many more losses like these (n,) bring the upper end of mean_interval down to `bound`.

    None when their mean is not below it or 8192 would not do. Without a loss yet: as if they were all 0.
    """
    values = np.asarray(losses, dtype=np.float64)
    known = values if values.size else np.zeros(1)
    if known.mean() >= bound:
        return None
    going_on = np.concatenate([values, np.resize(known, MOST_CONSIDERED)])
    p_values = _running_p_values(_log_capital(1 - going_on, 1 - bound, _no_reserve))
    enough = int(np.searchsorted(-p_values, -(1 - confidence) / 2)) + 1
    return max(0, enough - len(values)) if enough <= len(going_on) else None


def _reserves(n: int) -> Values:
    """The share of the capital not yet at stake before the first loss, and after each of n starts.

    It falls as slowly as 1 / log, so a late start costs little: about two times the logarithm of its number.
    """
    return 1 / (1 + np.log1p(np.arange(n + 1)))


def _no_reserve(n: int) -> Values:
    """All at stake from the first loss."""
    return np.concatenate([[1.0], np.zeros(n)])


def _log_capital(losses: Values, bound: float, reserves: Reserves) -> Values:
    """Logarithm of the gamblers' capital (n,) after each loss; they start with 1 and bet on a mean above."""
    n = len(losses)
    kept = reserves(n)
    grown = np.cumsum(np.log1p(np.outer(losses / bound - 1, BETS)), axis=0)
    before = np.vstack([np.zeros(len(BETS)), grown[:-1]]) if n else grown
    with np.errstate(divide="ignore"):  # nothing kept, nothing started: log 0
        started, kept = np.log(kept[:-1] - kept[1:]), np.log(kept[1:])
    staked = grown + np.logaddexp.accumulate(started[:, None] - before, axis=0)
    return np.logaddexp(logsumexp(staked, axis=1) - math.log(len(BETS)), kept)


def _running_p_values(log_capital: Values) -> Values:
    return np.exp(-np.maximum.accumulate(np.maximum(log_capital, 0)))


def _largest_refuted(losses: Values, error: float, reserves: Reserves) -> float:
    """The largest bound that the capital betting above it refutes at `error`; 0 when it refutes none."""

    def surplus(bound: float) -> float:
        return _log_capital(losses, bound, reserves).max(initial=0.0) + math.log(error)

    # Every gambler's capital falls in the bound, so what is below a refuted bound is refuted.
    return brentq(surplus, SMALLEST_BOUND, 1.0) if surplus(SMALLEST_BOUND) > 0 else 0.0
