"""Sequential evidence about a share of bad masks, valid however often and whenever one looks.

A loss is 0 to 1: 1 for a bad mask and 0 for a good one, or 1 - IoU. All that is assumed is that losses come
one after the other, each with the same mean given those before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

SUSPECTED = (1.5, 2.0, 4.0)  # times the promised mean: what a fault may have made of it
_EDGE = 1e-12


@dataclass(frozen=True)
class Interval:
    """Where the mean loss lies, both ends 0 to 1."""

    low: float
    high: float


def confidence_sequence(losses: ArrayLike, confidence: float) -> Interval:
    """The mean of losses (n,) in 0..1, with an interval that holds for all n at once with this confidence.

    Robbins' mixture with the Jeffreys prior: the interval is where the Beta-Bernoulli likelihood ratio
    against m stays below 1 / (1 - confidence) (Howard et al. 2021, "Time-uniform, nonparametric,
    nonasymptotic confidence sequences", section 3; that it holds for losses between 0 and 1 too follows from
    the weighted AM-GM inequality). No losses give 0 to 1.
    """
    values = np.asarray(losses, dtype=np.float64)
    bad, n = float(values.sum()), len(values)
    if n == 0:
        return Interval(0.0, 1.0)
    mean, limit = bad / n, -math.log1p(-confidence)

    def excess(m: float) -> float:
        mixed = betaln(0.5 + bad, 0.5 + n - bad) - betaln(0.5, 0.5)
        return float(mixed - xlogy(bad, m) - xlog1py(n - bad, -m)) - limit

    low = 0.0 if excess(_EDGE) <= 0 else brentq(excess, _EDGE, max(mean, 2 * _EDGE))
    high = 1.0 if excess(1 - _EDGE) <= 0 else brentq(excess, min(mean, 1 - 2 * _EDGE), 1 - _EDGE)
    return Interval(float(low), float(high))


def evidence_of_a_break(losses: ArrayLike, promised: float) -> NDArray[np.float64]:
    """Evidence (n,) after each loss against "the mean loss is, and always was, at most `promised`".

    If that is true, the evidence ever reaches 1 / delta with probability at most delta (Ville's inequality).
    It is a mixture of bets: on a mean of 1.5, 2 and 4 times the promised one, each from every loss on, so
    that a fault after a long good time is found soon too (Shin, Ramdas and Rinaldo
    2023, "E-detectors", with weights of starts that sum to 1). `promised` is in (0, 1).
    """
    values = np.asarray(losses, dtype=np.float64)
    suspected = [min(times * promised, (1 + promised) / 2) for times in SUSPECTED]
    starts = _start_weights(len(values))
    waiting = 1 - np.cumsum(starts)
    running = [_running_bets(values, promised, mean, starts) for mean in suspected]
    return np.asarray(np.mean(running, axis=0) + waiting)


def _running_bets(
    losses: NDArray[np.float64], promised: float, suspected: float, starts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Capital (n,) of bets on one mean, a new one started before each loss with its weight."""
    gains = np.exp(
        losses * math.log(suspected / promised) + (1 - losses) * math.log((1 - suspected) / (1 - promised))
    )
    capital, history = 0.0, []
    for gain, start in zip(gains.tolist(), starts.tolist(), strict=True):
        capital = (capital + start) * gain
        history.append(capital)
    return np.array(history)


def _start_weights(n: int) -> NDArray[np.float64]:
    """Weights (n,) of the first n starts; all there ever are sum to 1.

    The k-th block of 2^(k-1) starts shares 1 / (k (k + 1)): late starts weigh little less than early ones.
    """
    weights: list[float] = []
    for block in count(1):
        if len(weights) >= n:
            return np.array(weights[:n])
        size = 2 ** (block - 1)
        weights += [1 / (block * (block + 1) * size)] * size
    raise AssertionError  # the loop returns
