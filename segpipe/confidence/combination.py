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
JOINED = np.array([part in ("expected_iou", "own_sure_iou") for part in SCORE_PARTS])
# Of own_precision, where one class is all there is; chosen on groups left out of the training, as that it
# and own_accuracy share by the diversity of the classes (docs/confidence.md).
PRECISION_WEIGHT = 3.0
# Of own_sure_iou, beside what the fit gives it; 1 to 4 rank groups left out as well.
SURE_WEIGHT = 2.0
# Bias, then a weight per part. What the judge sees in pixels must show its worth on images held back: on a
# video that it does not know the generator's own belief is the better guess.
UNFITTED = (0.0, *(float(part in ("own_sure_iou", "familiarity")) for part in SCORE_PARTS))
# Pulls towards that: a handful of tuning images can say little against it.
RIDGE = 0.02
# Below it scores would be rounding, where IoUs do not follow them at all.
LEAST_STRETCH = 0.05


def class_diversity(counts: NDArray[np.int64]) -> float:
    """Chance, 0 to 1, that two pixels drawn at random are of different classes; counts (K,) of each.

    0 where no pixel is counted. Simpson 1949, "Measurement of diversity".
    """
    shares = counts / max(int(counts.sum()), 1)
    return float(1 - np.square(shares).sum()) if counts.any() else 0.0


def given_weights(diversity: float) -> Floats:
    """(P,) weights of the parts that no fit can weigh, for a set of this class_diversity.

    Images held back are of the groups that taught the networks, or near them, and cannot tell what it costs
    to look like none of these: twice as far from them is half the odds, before all is stretched. Nor what
    doubt costs there: that of all pixels where many classes share an image, that of each class where one
    fills it. Where one does, what the judge sees in pixels travels, too; where many do it hardly does.
    """
    weights = {
        "expected_iou": (1 - diversity) ** 2,
        "familiarity": 1.0,
        "own_accuracy": diversity,
        "own_precision": PRECISION_WEIGHT * (1 - diversity),
        "own_sure_iou": SURE_WEIGHT,
        "agreement": diversity,
    }
    return np.array([weights.get(part, 0.0) for part in SCORE_PARTS])


def fit_combination(parts: Floats, ious: Floats, diversity: float) -> Floats:
    """Bias and weights >= 0 such that expit(bias + parts @ weights) follows the IoUs.

    `parts` (n, P) in the order of SCORE_PARTS; `ious` (n,) from 0 to 1; `diversity` as class_diversity of the
    labels -> (1 + P,). Logistic regression on the IoUs as fractions, over standardised parts, of those that
    are expected IoUs; the others weigh what given_weights says. Weights are at least 0, so that a surer part
    never lowers the score, and a ridge pulls them towards UNFITTED, which it is with fewer than 10 images. A
    part that does not vary weighs 0. All together are then stretched or shrunk as the IoUs are (Platt 1999,
    "Probabilistic outputs for support vector machines"), which ranks no image differently.
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
    given = given_weights(diversity)
    known = (parts - mean) / scale, parts @ given, ious, start
    found = minimize(_loss, start, args=known, method="L-BFGS-B", bounds=bounds).x
    weights = np.where(varies, found[1:] / scale, 0.0) + given
    bias, stretch = _stretched(parts @ weights, ious)
    return np.concatenate([[bias], stretch * weights])


def _stretched(scores: Floats, ious: Floats) -> Floats:
    """Bias and factor > 0 with which the scores follow the IoUs as logits do."""
    centre = scores.mean()

    def loss(fit: Floats) -> float:
        logits = fit[0] + fit[1] * (scores - centre)
        return float(_surprise(logits, ious) + RIDGE * (fit[1] - 1) ** 2)

    bias, stretch = minimize(loss, np.array([centre, 1.0]), bounds=[(None, None), (LEAST_STRETCH, None)]).x
    return np.array([bias - stretch * centre, stretch])


def _loss(combination: Floats, standard: Floats, given: Floats, ious: Floats, unfitted: Floats) -> float:
    logits = combination[0] + standard @ combination[1:] + given
    return float(_surprise(logits, ious) + RIDGE * np.square(combination - unfitted)[1:].sum())


def _surprise(logits: Floats, ious: Floats) -> float:
    """Mean cross entropy of the IoUs, as fractions, under these logits."""
    return float((np.logaddexp(0.0, logits) - ious * logits).mean())
