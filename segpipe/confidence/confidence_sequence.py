"""Evidence that a mean of losses is too large, watched night by night without end.

Betting as in Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting": several
gamblers stake a fixed share each (their "diversified Kelly" bets), and the capital of all together is the
evidence. Against a mean that is too large only from some night on, part of the capital starts anew on every
night: a mixture over start times, the Shiryaev-Roberts e-detector of Shin, Ramdas and Rinaldo 2023,
"E-detectors", with weights that sum to one, so that the probability of a false alarm, ever, is bounded and
not only its rate.

A bet is on a night's mean loss and not on each mask's: masks of one night share their light, their scenes and
their faults, and whoever bets on each of them as if it were alone takes one bad night for proof.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

# Shares of what a gambler may stake at most; each suits another distance of the mean from the bound.
BETS = np.array([0.95, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
SMALLEST_BOUND = 1e-9

Values = NDArray[np.float64]


def p_values_above(losses: ArrayLike, bound: float, weights: ArrayLike = 1.0) -> Values:
    """P-values (n,) after each night against "the mean was never above `bound`"; they never rise.

    `losses` (n,) are each night's mean loss, 0 to 1, `weights` (n,), or one for all, 0 to 1, what share of
    an ordinary night's bet is placed on it; `bound` is in (0, 1). If on no night weight times (loss - bound)
    had, given the nights before, an expectation above 0, then any of them, however many there will be, is
    ever p or less with a probability of at most p (Ville's inequality). The mean may have risen on any of
    the nights: there is no need to guess when. Both may be (k, n): the nights counted in k ways, each of
    which is bet on with a k-th of the capital.
    """
    capital = _log_capital(np.asarray(losses, dtype=np.float64), _each(weights, losses), bound)
    return np.exp(-np.maximum.accumulate(np.maximum(capital, 0)))


def lower_end(losses: ArrayLike, error: float, weights: ArrayLike = 1.0) -> float:
    """The largest bound that the nights (see p_values_above) refute at `error`; 0 when they refute none.

    With a probability of at least 1 - error the mean of some night was above it, whenever it is looked at;
    it only ever rises.
    """
    values, shares = np.asarray(losses, dtype=np.float64), _each(weights, losses)

    def surplus(bound: float) -> float:
        return _log_capital(values, shares, bound).max(initial=0.0) + math.log(error)

    # Every gambler's capital falls in the bound, so what is below a refuted bound is refuted.
    return brentq(surplus, SMALLEST_BOUND, 1.0) if surplus(SMALLEST_BOUND) > 0 else 0.0


def _each(weights: ArrayLike, losses: ArrayLike) -> Values:
    return np.broadcast_to(np.asarray(weights, dtype=np.float64), np.shape(losses))


def _reserves(n: int) -> Values:
    """The share of the capital not yet at stake before the first night, and after each of n starts.

    It falls as slowly as 1 / log, so a late start costs little: about two times the logarithm of its number.
    """
    return 1 / (1 + np.log1p(np.arange(n + 1)))


def _log_capital(losses: Values, weights: Values, bound: float) -> Values:
    """Logarithm of the gamblers' capital (n,) after each night; they start with 1 and bet on a mean above."""
    each_way = zip(np.atleast_2d(losses), np.atleast_2d(weights), strict=True)
    ways = [_log_capital_of_one(*way, bound) for way in each_way]
    return np.logaddexp.reduce(ways, axis=0) - math.log(len(ways))


def _log_capital_of_one(losses: Values, weights: Values, bound: float) -> Values:
    """Of the nights counted in one way (n,)."""
    n = len(losses)
    kept = _reserves(n)
    grown = np.cumsum(np.log1p(np.outer(weights * (losses / bound - 1), BETS)), axis=0)
    before = np.vstack([np.zeros(len(BETS)), grown[:-1]]) if n else grown
    started, kept = np.log(kept[:-1] - kept[1:]), np.log(kept[1:])
    staked = grown + np.logaddexp.accumulate(started[:, None] - before, axis=0)
    return np.logaddexp(logsumexp(staked, axis=1) - math.log(len(BETS)), kept)
