"""What a blind draw says about the share of some images that are accepted and wrong about a class.

How many images the promise is about, nobody knows: whether an image has the class only shows in a drawn one.
So bounds that need the size of what was drawn from do not serve. Here every drawn image the promise is about
is a bet that at most a share u of all of them is wrong: capital x (1 + l w (u - wrong) / (1 - u)), w the
smallest chance to be drawn over its own. Each was drawn by a chance of its own, independent of the others, so
if more than u are wrong the expected capital is at most 1, and by Markov's inequality it reaches 1 / error
with a probability of at most `error`. That holds whatever images have in common, and for any chances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

# Shares of what a gambler may stake at most: for no wrong one, for half of the limit, for nearly all of it.
BETS = np.array([0.99, 0.5, 0.2])
_NEAREST = 1e-9  # to 0 and to 1, where bounds are looked for


@dataclass(frozen=True)
class Seen:
    """Images that the promise is about, of n kinds: `counts` (n,) of them that each had the same chance (n,),
    above 0 to 1, to be seen, and whether those are `wrong` (n,).

    `least_chance` is the smallest that any such image had, also of those not seen.
    """

    chances: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    counts: NDArray[np.int64]
    least_chance: float

    @property
    def share(self) -> float | None:
        """The share of all such images that is wrong, estimated (Hajek); None without one."""
        stands_for = self.counts / self.chances
        return float(stands_for @ self.wrong / stands_for.sum()) if stands_for.sum() else None


def proves(seen: Seen, limit: float, error: float) -> bool:
    """Whether the images show that at most `limit` is wrong, erring with a probability of `error` at most."""
    return _log_capital(seen, limit) >= -math.log(error)


def upper_bound(seen: Seen, error: float) -> float:
    """At most this share is wrong, save with a probability of `error`; 1 where nothing is known."""

    def surplus(limit: float) -> float:
        return _log_capital(seen, limit) + math.log(error)

    return brentq(surplus, _NEAREST, 1 - _NEAREST) if surplus(1 - _NEAREST) > 0 else 1.0


def lower_bound(seen: Seen, error: float) -> float:
    """At least this share is wrong."""
    return 1 - upper_bound(replace(seen, wrong=~seen.wrong), error)


def answers_needed(share: float, limit: float, error: float) -> int | None:
    """How many images of which such a share is wrong would prove the limit; None when no number would."""
    gains = (1 - share) * np.log1p(BETS * limit / (1 - limit)) + share * np.log1p(-BETS)
    best = float(gains.max())
    if best <= 0:
        return None

    def surplus(n: float) -> float:
        return float(logsumexp(n * gains)) - math.log(len(BETS)) + math.log(error)

    enough = 1 + (math.log(len(BETS)) - math.log(error)) / best  # for the luckiest gambler alone
    return math.ceil(brentq(surplus, 0, enough))


def _log_capital(seen: Seen, limit: float) -> float:
    """It rises with the limit, as what every image brings in does."""
    payoffs = seen.least_chance / seen.chances * (limit - seen.wrong) / (1 - limit)
    return float(logsumexp(np.log1p(np.outer(BETS, payoffs)) @ seen.counts) - math.log(len(BETS)))
