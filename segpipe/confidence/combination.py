"""The monotone fit that joins the parts of the routing score, on tuning images with known IoUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from segpipe.confidence.score import SCORE_PARTS

Floats = NDArray[np.float64]

SMALLEST_DEVIATION = 1e-6
FEWEST_IMAGES = 10
# Of the parts those that are expected IoUs are joined. The others pay on images of the groups that taught the
# judge, and cost more than that on images of other groups.
JOINED = np.array([part in ("expected_iou", "own_iou") for part in SCORE_PARTS])
# Images held back are of the groups that taught the networks, or near them, and cannot tell what it costs to
# look like none of these: twice as far from them is half the odds. Nor what doubt all over an image costs
# there: how much that weighs was chosen on groups left out of the training (docs/confidence.md).
GIVEN = np.array([{"familiarity": 1.0, "own_accuracy": 0.5}.get(part, 0.0) for part in SCORE_PARTS])
# Bias, then a weight per part. What the judge sees in pixels must show its worth on images held back: on a
# video that it does not know the generator's own belief is the better guess.
UNFITTED = (0.0, *(float(part in ("own_iou", "familiarity")) for part in SCORE_PARTS))
# Pulls towards that: a handful of tuning images can say little against it.
RIDGE = 0.02


def fit_combination(parts: Floats, ious: Floats) -> Floats:
    """Bias and weights >= 0 such that expit(bias + parts @ weights) follows the IoUs.

    `parts` (n, P) in the order of SCORE_PARTS; `ious` (n,) from 0 to 1 -> (1 + P,). Logistic regression on
    the IoUs as fractions, over standardised parts, of those that are expected IoUs; familiarity weighs
    1, own_accuracy 0.5, the others 0. Weights are at least 0, so that a surer part never lowers the score,
    and a ridge pulls them towards UNFITTED, which it is with fewer than 10 images. A part that does not vary
    weighs 0.
    """
    if len(ious) < FEWEST_IMAGES:
        return np.asarray(UNFITTED)
    mean, deviation = parts.mean(axis=0), parts.std(axis=0)
    varies = JOINED & (deviation > SMALLEST_DEVIATION)
    if not varies.any():
        return np.asarray(UNFITTED)
    scale = np.where(varies, deviation, 1.0)
    unfitted = np.asarray(UNFITTED)
    start = np.concatenate([[unfitted[0] + mean @ unfitted[1:]], np.where(varies, unfitted[1:] * scale, 0.0)])
    bounds = [(None, None), *((0.0, None if free else 0.0) for free in varies)]
    known = (parts - mean) / scale, parts @ GIVEN, ious, start
    found = minimize(_loss, start, args=known, method="L-BFGS-B", bounds=bounds).x
    weights = np.where(varies, found[1:] / scale, 0.0)
    return np.concatenate([[found[0] - mean @ weights], weights + GIVEN])


def _loss(combination: Floats, standard: Floats, given: Floats, ious: Floats, unfitted: Floats) -> float:
    logits = combination[0] + standard @ combination[1:] + given
    surprise = np.logaddexp(0.0, logits) - ious * logits
    return float(surprise.mean() + RIDGE * np.square(combination - unfitted)[1:].sum())
