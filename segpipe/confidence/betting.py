"""Is the mean of losses between 0 and 1 below a bound? A test by betting, far stronger than Hoeffding's.

Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", sections 3 and 4: one
side of the hedged capital process with the predictable plug-in bets.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST_BET = 0.99  # of what a loss of 1 would take all of; the paper's 1/2 and 3/4 win less at these sizes
DOUBLINGS_CONSIDERED = 13  # beyond 8192 losses the answer is no advice


def betting_p_value(losses: ArrayLike, max_mean_loss: float, confidence: float) -> float:
    """P-value against "the mean loss is above `max_mean_loss`", for independent `losses` (n,) in 0..1.

    Their order must be fixed without looking at them. A gambler who stakes a share of the capital on each
    loss being below the bound cannot expect to gain if the mean is above it, so the capital ever reaches
    1 / p with probability at most p (Ville's inequality). The bets are made for a test at level
    1 - confidence; the p-value is valid at every level. `max_mean_loss` and `confidence` are in (0, 1); no
    losses give 1.
    """
    values = np.asarray(losses, dtype=np.float64)
    bets = _predictable_plug_in(values, max_mean_loss, confidence)
    log_capital = np.cumsum(np.log1p(bets * (max_mean_loss - values)))
    return math.exp(-log_capital.max(initial=0.0))


def losses_needed(losses: ArrayLike, max_mean_loss: float, confidence: float) -> int | None:
    """About how many losses would pass the test at 1 - confidence if they went on like these (n,), n > 0.

    That is: these over and over in the same order. None when their mean is not below the bound or when
    8192 would not do.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.mean() >= max_mean_loss:
        return None

    def passes(n: int) -> bool:
        return betting_p_value(np.resize(values, n), max_mean_loss, confidence) <= 1 - confidence

    doubled = (2**exponent for exponent in range(DOUBLINGS_CONSIDERED + 1))
    enough = next(filter(passes, doubled), None)
    if enough is None:
        return None
    return bisect_left(range(enough), True, lo=enough // 2 + 1, key=passes)


def _predictable_plug_in(
    losses: NDArray[np.float64], max_mean_loss: float, confidence: float
) -> NDArray[np.float64]:
    """The bet before each loss, from the spread of those before it."""
    n = len(losses)
    seen = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(losses)) / (seen + 1)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (seen + 1)
    variances_before = np.concatenate([[0.25], variances])[:n]
    bets = np.sqrt(-2 * math.log(1 - confidence) / (max(n, 1) * variances_before))
    return np.minimum(bets, LARGEST_BET / (1 - max_mean_loss))
