"""Whether a policy's numbers agree with each other: what its own file is enough to recompute, recomputed.

It catches a policy that was damaged or made up carelessly, not one made up with care: the calibration images
are not in the file. Never trust a policy from a place you do not trust: calibrate the model yourself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from segpipe.confidence.betting import LARGEST_BET
from segpipe.confidence.display import displayed

if TYPE_CHECKING:
    from segpipe.confidence.policy import BadFractionPromise, MeanLossPromise, Policy

N_QUANTILES = 101  # the minimum, every percentile, the maximum
ROUNDING = 1e-9  # of quantiles, which are interpolated
TOLERANCE = 1e-6  # of the p-value, relative: it is recomputed, maybe by another version of scipy


def disagreements(policy: Policy) -> Iterator[str]:
    """What in the policy cannot be, a phrase each; nothing for every policy that make_policy makes."""
    yield from _counts(policy)
    yield from _score_map(policy)
    if policy.model_digest is not None and not policy.model_digest.startswith(policy.model_id):
        yield f"model_digest does not begin with model_id {policy.model_id}"
    yield from _without_threshold(policy) if policy.threshold is None else _with(policy, policy.threshold)


def _counts(policy: Policy) -> Iterator[str]:
    if not 1 <= policy.n_calibration <= policy.n_images:
        yield f"n_calibration {policy.n_calibration} is not from 1 to n_images {policy.n_images}"
    if policy.accepted > policy.n_calibration:
        yield f"accepted {policy.accepted} is more than n_calibration {policy.n_calibration}"
    if policy.accepted + (policy.held_back or 0) > policy.n_calibration:
        yield f"accepted {policy.accepted} and held_back {policy.held_back} are more than n_calibration"
    if (policy.labelled_images_needed == 0) != (policy.threshold is not None):
        yield "labelled_images_needed is 0 with a threshold, and never without"


def _score_map(policy: Policy) -> Iterator[str]:
    if len(policy.score_quantiles) != N_QUANTILES or not _rises(policy.score_quantiles):
        yield f"score_quantiles are not {N_QUANTILES} rising numbers"
    if not 1 <= len(policy.display_scores) == len(policy.display_values):
        yield "display_scores and display_values are not as many"
    if not all(low < high for low, high in pairwise(policy.display_scores)):
        yield "display_scores do not increase"
    if not _rises(policy.display_values):
        yield "display_values fall"


def _rises(values: Sequence[float]) -> bool:
    return all(low <= high for low, high in pairwise(values))


def _without_threshold(policy: Policy) -> Iterator[str]:
    if (policy.accepted, policy.p_value, _found(policy.promised)) != (0, 1, None):
        yield "without a threshold accepted is 0, p_value 1 and what was found among the accepted null"


def _found(promised: BadFractionPromise | MeanLossPromise) -> float | None:
    return promised.bad if promised.target == "bad_fraction" else promised.mean_loss


def _with(policy: Policy, threshold: float) -> Iterator[str]:
    if not 1 <= policy.accepted <= _most_accepted(policy, threshold):
        yield f"so many of those scores are not at least threshold {threshold:g}: accepted {policy.accepted}"
    if policy.accepted < _fewest_accepted(policy, threshold):
        yield f"more of those scores are at least threshold {threshold:g}: accepted {policy.accepted}"
    if policy.p_value > 1 - policy.confidence:
        yield f"p_value {policy.p_value:g} is above 1 - confidence {policy.confidence:g}"
    if policy.promised.target == "bad_fraction":
        yield from _counted_bad(policy, policy.promised)
    else:
        yield from _averaged(policy, policy.promised)
    if (found := _mean_iou_found(policy.promised, policy.accepted)) is not None:
        yield from _shown(policy, found)


def _most_accepted(policy: Policy, threshold: float) -> int:
    """How many calibration scores can be at least `threshold`, going by their quantiles.

    A quantile below it lies above the score of the rank before, so that one is below it, too.
    """
    surely_below = threshold - ROUNDING * max(1, abs(threshold))
    below = sum(value < surely_below for value in policy.score_quantiles)
    n, last = _scored(policy), max(below - 1, 0)
    return n - math.ceil(last * (n - 1) / (N_QUANTILES - 1))


def _fewest_accepted(policy: Policy, threshold: float) -> int:
    """How few calibration images the threshold can have accepted, going by the quantiles of their scores.

    A quantile of at least it lies at most at the score of the rank after, so that this one and all above are
    at least it, too; but for those that were held back.
    """
    if policy.guards and policy.held_back is None:
        return 0  # nobody knows how many the guards held back
    surely_above = threshold + ROUNDING * max(1, abs(threshold))
    below = sum(value < surely_above for value in policy.score_quantiles)
    if below == N_QUANTILES:
        return 0
    n, guarded = _scored(policy), (policy.held_back or 0) if policy.guards else 0
    return n - math.ceil(below * (n - 1) / (N_QUANTILES - 1)) - guarded


def _scored(policy: Policy) -> int:
    """Calibration images whose scores the quantiles are of, at most: what no guard held back has none."""
    return policy.n_calibration - (0 if policy.guards else policy.held_back or 0)


def _mean_iou_found(promised: BadFractionPromise | MeanLossPromise, accepted: int) -> float | None:
    """What the mean IoU of the accepted calibration images was, or was at least."""
    if promised.target == "mean_loss":
        return None if promised.mean_loss is None else 1 - promised.mean_loss
    return None if promised.bad is None else promised.min_iou * (1 - promised.bad / max(accepted, 1))


def _shown(policy: Policy, found: float) -> Iterator[str]:
    """The map that shows an IoU for each score was fitted to the same images, so it shows no lower mean."""
    same_images = policy.n_images == policy.n_calibration and not policy.guards and not policy.held_back
    if same_images and found > (most := _highest_mean_shown(policy)) + TOLERANCE:
        yield f"of accepted {policy.accepted} the mean IoU shown is at most {most:g}, and {found:g} was found"


def _highest_mean_shown(policy: Policy) -> float:
    """The highest mean of what is shown for the best `accepted` of the calibration scores.

    A score is at most the next quantile from its rank on. What the map shows does not fall with the score.
    """
    n, steps = policy.n_calibration, N_QUANTILES - 1
    ranks = (place * (n - 1) // steps for place in range(N_QUANTILES))  # the last that each quantile bounds
    counted = [max(0, rank - (n - policy.accepted) + 1) for rank in ranks]
    bounds = [value + ROUNDING * max(1, abs(value)) for value in policy.score_quantiles]
    shown = displayed(bounds, (policy.display_scores, policy.display_values))
    return float(shown @ np.diff(counted, prepend=0)) / max(policy.accepted, 1)


def _counted_bad(policy: Policy, promised: BadFractionPromise) -> Iterator[str]:
    if promised.bad is None or promised.bad > policy.accepted:
        yield f"bad {promised.bad} of accepted {policy.accepted}"
        return
    p_value = float(binom.cdf(promised.bad, policy.accepted, promised.max_bad_fraction))
    if not math.isclose(policy.p_value, p_value, rel_tol=TOLERANCE):
        yield f"p_value {policy.p_value:g} of {promised.bad} bad of {policy.accepted} is {p_value:g}"


def _averaged(policy: Policy, promised: MeanLossPromise) -> Iterator[str]:
    """The losses are not there; but no bet wins more than the largest one on a loss of 0."""
    if promised.mean_loss is None:
        yield "mean_loss is null with a threshold"
    limit = promised.max_mean_loss
    log_smallest = -policy.accepted * math.log1p(LARGEST_BET * limit / (1 - limit))
    if policy.p_value < math.exp(log_smallest) * (1 - TOLERANCE):
        yield f"p_value {policy.p_value:g} is too small for accepted {policy.accepted}"
