"""The monotone fit that joins the parts of the routing score, on tuning images with known IoUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from segpipe.confidence.score import SCORE_PARTS

Floats = NDArray[np.float64]

SMALLEST_DEVIATION = 1e-6
FEWEST_IMAGES = 10
# The one part that is fitted. The others pay on images of the groups that taught the judge, and cost more
# than that on images of others; or they are given a weight, because images held back cannot tell theirs.
FITTED = SCORE_PARTS.index("expected_iou")
# What parts are given; chosen on groups left out of the training (docs/confidence.md).
PRECISION_WEIGHT, MANY_CLASSES_WEIGHT, ACCURACY_WEIGHT, SECOND_LOOK_WEIGHT = 3.0, 2.0, 0.5, 1.25
# Bias, then a weight per part. What the judge sees in pixels must show its worth on images held back: on a
# video that it does not know the generator's own belief is the better guess. At half its logit: generators
# are too sure of themselves (Guo et al. 2017, "On calibration of modern neural networks").
UNFITTED = (0.0, *({"own_precision": 0.5, "familiarity": 1.0}.get(part, 0.0) for part in SCORE_PARTS))
# Pulls the fitted weight towards 0 and the stretch towards 1: a handful of tuning images can say little.
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
    """(P,) weights of the parts that no fit can weigh, or not alone, for a set of this class_diversity.

    Images held back are of the groups that taught the networks, or near them, and cannot tell what it costs
    to look like none of these: twice as far from them is half the odds, before all is stretched. Nor what
    doubt costs there. Where one class fills an image, that of each class tells, and what the judge sees in
    pixels travels, too. Where many share it, that of all pixels and that of each class, by the generator's
    own word on which are there. What a second look labels otherwise tells the more the more classes there
    are to confuse: a class that is rare may be seen in neither.
    """
    weights = {
        "agreement": SECOND_LOOK_WEIGHT * diversity,
        "expected_iou": (1 - diversity) ** 2,
        "familiarity": 1.0,
        "own_accuracy": ACCURACY_WEIGHT * diversity,
        "own_precision": PRECISION_WEIGHT * (1 - diversity),
        "sure_precision": MANY_CLASSES_WEIGHT * diversity**2,
    }
    return np.array([weights.get(part, 0.0) for part in SCORE_PARTS])


def fit_combination(parts: Floats, ious: Floats, diversity: float) -> Floats:
    """Bias and weights >= 0 such that expit(bias + parts @ weights) follows the IoUs.

    `parts` (n, P) in the order of SCORE_PARTS; `ious` (n,) from 0 to 1; `diversity` as class_diversity of the
    labels -> (1 + P,). What given_weights says, and for FITTED what a logistic regression on the IoUs as
    fractions finds beside that: at least 0, so that a surer part never lowers the score, and pulled towards 0
    by a ridge. All together are then stretched or shrunk as the IoUs are (Platt 1999, "Probabilistic outputs
    for support vector machines"), which ranks no image differently. UNFITTED with fewer than 10 images, or
    where no part varies.
    """
    if len(ious) < FEWEST_IMAGES or (parts.std(axis=0) <= SMALLEST_DEVIATION).all():
        return np.asarray(UNFITTED)
    weights = given_weights(diversity)
    weights[FITTED] += _fitted_weight(parts[:, FITTED], parts @ weights, ious)
    bias, stretch = _stretched(parts @ weights, ious)
    return np.concatenate([[bias], stretch * weights])


def _fitted_weight(part: Floats, given: Floats, ious: Floats) -> float:
    """Of one part (n,), at least 0, beside what the others come to (n,); 0 of one that does not vary."""
    deviation = part.std()
    if deviation <= SMALLEST_DEVIATION:
        return 0.0
    standard = (part - part.mean()) / deviation

    def loss(fit: Floats) -> float:
        return _surprise(fit[0] + fit[1] * standard + given, ious) + float(RIDGE * fit[1] ** 2)

    found = minimize(loss, np.array([-given.mean(), 0.0]), bounds=[(None, None), (0.0, None)]).x
    return float(found[1] / deviation)


def _stretched(scores: Floats, ious: Floats) -> Floats:
    """Bias and factor > 0 with which the scores follow the IoUs as logits do."""
    centre = scores.mean()

    def loss(fit: Floats) -> float:
        logits = fit[0] + fit[1] * (scores - centre)
        return float(_surprise(logits, ious) + RIDGE * (fit[1] - 1) ** 2)

    bias, stretch = minimize(loss, np.array([centre, 1.0]), bounds=[(None, None), (LEAST_STRETCH, None)]).x
    return np.array([bias - stretch * centre, stretch])


def _surprise(logits: Floats, ious: Floats) -> float:
    """Mean cross entropy of the IoUs, as fractions, under these logits."""
    return float((np.logaddexp(0.0, logits) - ious * logits).mean())
