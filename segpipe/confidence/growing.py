"""A certificate that grows: reviews of masks drawn blind to the score prove looser and looser thresholds.

A share of ALL masks is drawn, accepted or not, and people say which of them are bad. Against "of the masks at
or above this threshold more than the limit are bad" gamblers bet on each drawn mask up there, in the order of
labelling, before its answer is known; if that is so their capital is a supermartingale, and by Ville's
inequality it ever reaches 2 / delta with a probability of at most delta / 2. Thresholds are proven from
strict to loose, so that only the first false one can do harm, and it does so with that probability, however
often anyone looks. The other delta / 2 is what calibration has spent. Waudby-Smith and Ramdas (2024) on the
bets, Learn-then-Test on the sequence; kin: arXiv 2406.10490, 2409.15844.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from scipy.special import logsumexp
from scipy.stats import beta

from segpipe.errors import PolicyError

# Shares of what a gambler may stake at most; each suits another distance of the bad share from the limit.
BETS = np.array([0.9, 0.6, 0.4, 0.25, 0.12, 0.06])
# Shares of the calibration images that the thresholds accept: fixed before any mask is drawn. Nothing tried
# begins better than a fifth, neither stricter nor looser nor several at once: benchmarks/growing.py starts.
COVERAGES = tuple(step / 100 for step in range(20, 101, 4))

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
OPTIONAL_EVIDENCE = frozenset({"until"})


@dataclass(frozen=True)
class Evidence:
    """What a grown policy's threshold rests on, beside its calibration.

    `first_threshold` is calibration's own, None when it proved none. Of the `drawn` masks whose answers count
    the policy's threshold accepts `accepted`, and `bad` of those are so; one that a person skipped counts as
    bad. `log_capital` is the logarithm of the highest capital at that threshold so far (0 when it has never
    risen). Of the accepted that were answered, with the draft to mend or from scratch, so many were bad;
    `ratio` is the second bad share over the first, None where it is unknown or infinite. The last of the
    drawn was labelled at `until` (ISO 8601 in UTC; None without one and in a policy of a version that did not
    store it, which is then neither in the file nor in the id).
    """

    first_threshold: float | None
    drawn: _Count
    accepted: _Count
    bad: _Count
    log_capital: Annotated[float, Field(ge=0)]
    answered_with_draft: _Count
    bad_with_draft: _Count
    answered_from_scratch: _Count
    bad_from_scratch: _Count
    ratio: Annotated[float, Field(ge=0)] | None
    until: _Line | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Growth:
    """How a policy may grow, fixed when it is calibrated, and how far it has.

    `thresholds` are tried from strict to loose. Labelling draws at least `draw_share` (0 to 1) of all masks.
    `root` is the id of the calibrated policy that this one has grown from and `number` counts from it on:
    None and 0 in that one itself, which has no `evidence`.
    """

    thresholds: tuple[float, ...]
    draw_share: Annotated[float, Field(gt=0, le=1)]
    root: _Line | None = None
    number: _Count = 0
    evidence: Evidence | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Draws:
    """Drawn masks with an answer, one entry each, in the order of labelling.

    scores: raw, -inf for a mask that no threshold accepts; bad: below the promised IoU, or skipped; shares:
    the probability (0 to 1) with which it was drawn; from_scratch: no draft was shown; skipped: nobody said.
    """

    scores: NDArray[np.float64]
    bad: NDArray[np.bool_]
    shares: NDArray[np.float64]
    from_scratch: NDArray[np.bool_]
    skipped: NDArray[np.bool_]


@dataclass(frozen=True)
class Ratio:
    """How many times as often a mask is found bad from scratch as with its draft, and an exact interval.

    estimate: None without an answer of each kind or without a bad one, infinite without a bad one with its
    draft; `lower` to `upper` are 0 to infinity where nothing is known.
    """

    estimate: float | None
    lower: float
    upper: float

    @property
    def is_surely_above_one(self) -> bool:
        """Whether people who mend a draft surely leave wrong what they would not have drawn."""
        return self.lower > 1


def bad_ratio(
    bad_from_scratch: int, from_scratch: int, bad_with_draft: int, with_draft: int, confidence: float
) -> Ratio:
    """The ratio of two bad shares, given as counts, with its exact conditional interval at `confidence`.

    Given how many are bad in all, those from scratch are binomial (exactly so for rare ones): Clopper and
    Pearson's interval for their share is one for the ratio.
    """
    bad = bad_from_scratch + bad_with_draft
    if not (bad and from_scratch and with_draft):
        return Ratio(None, 0.0, math.inf)
    error = (1 - confidence) / 2
    lower = beta.ppf(error, bad_from_scratch, bad_with_draft + 1) if bad_from_scratch else 0.0
    upper = beta.ppf(1 - error, bad_from_scratch + 1, bad_with_draft) if bad_with_draft else 1.0
    scale = with_draft / from_scratch
    return Ratio(*(_odds(share) * scale for share in (bad_from_scratch / bad, float(lower), float(upper))))


def limit_with_draft(limit: float, ratio: Ratio) -> float:
    """The limit (0 to 1) on the bad share that people find with the draft before them.

    By the upper end of the ratio's interval: by its estimate false thresholds were proven too often.
    """
    return limit / ratio.upper if ratio.is_surely_above_one else limit


def capital_needed(confidence: float) -> float:
    """The logarithm of the capital that proves a threshold."""
    return math.log(2 / (1 - confidence))


def most_log_capital(good: int, limit: float) -> float:
    """The logarithm of the highest capital that `good` good masks can bring."""
    return float(logsumexp(good * np.log1p(BETS * limit / (1 - limit))) - math.log(len(BETS)))


def log_capital(
    losses: NDArray[np.float64], weights: NDArray[np.float64], limits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logarithm of the gamblers' capital (n,) after each mask; they start with 1.

    losses (n,), 0 to 1: what each mask adds to the bad share; weights (n,), 0 to 1, scale what is at stake;
    limits (n,), 0 to 1: what the gamblers bet the bad share to be below.
    """
    payoffs = weights * (limits - losses) / (1 - limits)
    staked = np.cumsum(np.log1p(np.outer(payoffs, BETS)), axis=0)
    return logsumexp(staked, axis=1) - math.log(len(BETS)) if len(losses) else np.zeros(0)


def evidence_at(
    draws: Draws,
    threshold: float,
    limit: float,
    confidence: float,
    draw_share: float,
    first_threshold: float | None = None,
) -> Evidence:
    """What the draws say about one threshold: see Evidence.

    A mask drawn with a larger share than `draw_share`, the smallest that is ever used, counts for so much
    less, since it stands for fewer; at an infinite threshold none counts. Where the ratio of `bad_ratio` is
    surely above one the limit for answers with the draft is smaller by the most that it may be: one found bad
    there stands for so many, one that was skipped for itself. Raises PolicyError for a mask drawn with a
    smaller share.
    """
    up_here = draws.scores >= threshold
    if (draws.shares < draw_share).any():
        raise PolicyError(
            f"a mask was drawn with the share {draws.shares.min():g}, and the policy was to grow by no less "
            f"than {draw_share:g}: run segpipe verify"
        )
    bad, from_scratch = draws.bad[up_here], draws.from_scratch[up_here]
    answered = ~draws.skipped[up_here]
    with_draft, bad_with_draft = _counted(answered & ~from_scratch, bad)
    without, bad_without = _counted(answered & from_scratch, bad)
    ratio = bad_ratio(bad_without, without, bad_with_draft, with_draft, confidence)
    limits = np.where(from_scratch, limit, limit_with_draft(limit, ratio))
    losses = np.where(answered, bad, limits / limit)
    capital = log_capital(losses, draw_share / draws.shares[up_here], limits)
    return Evidence(
        first_threshold=first_threshold,
        drawn=len(draws.scores),
        accepted=len(bad),
        bad=int(bad.sum()),
        log_capital=float(capital.max(initial=0.0)),
        answered_with_draft=with_draft,
        bad_with_draft=bad_with_draft,
        answered_from_scratch=without,
        bad_from_scratch=bad_without,
        ratio=None if ratio.estimate in (None, math.inf) else ratio.estimate,
    )


def loosest_proven(
    draws: Draws, thresholds: Sequence[float], limit: float, confidence: float, draw_share: float
) -> float | None:
    """The loosest of the thresholds (strict to loose) that the draws prove together with all stricter ones.

    None when not even the strictest is proven. Proven once is proven: the highest capital so far decides.
    """
    needed = capital_needed(confidence)
    proven = takewhile(
        lambda threshold: evidence_at(draws, threshold, limit, confidence, draw_share).log_capital >= needed,
        thresholds,
    )
    return min(proven, default=None)


def _counted(chosen: NDArray[np.bool_], bad: NDArray[np.bool_]) -> tuple[int, int]:
    return int(chosen.sum()), int((chosen & bad).sum())


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf
