"""The monotone fit that joins the parts of the routing score, on tuning images with known IoUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]

SMALLEST_DEVIATION = 1e-6
FEWEST_IMAGES = 10
# Pulls towards the first part alone, as it is: a handful of tuning images can say little against it.
RIDGE = 0.02


def fit_combination(parts: Floats, ious: Floats) -> Floats:
    """Bias and weights >= 0 such that expit(bias + parts @ weights) follows the IoUs.

    `parts` (n, P), the first a logit of the expected IoU; `ious` (n,) from 0 to 1 -> (1 + P,). Logistic
    regression on the IoUs as fractions, over standardised parts. Weights are at least 0, so that a surer part
    never lowers the score, and a ridge pulls them towards the first part alone, which it is with fewer than
    10 images. A part that does not vary over the images weighs 0.
    """
    if len(ious) < FEWEST_IMAGES or parts[:, 0].std() < SMALLEST_DEVIATION:
        return np.eye(parts.shape[1] + 1)[1]
    mean, deviation = parts.mean(axis=0), parts.std(axis=0)
    varies = deviation > SMALLEST_DEVIATION
    scale = np.where(varies, deviation, 1.0)
    first_alone = np.zeros(parts.shape[1] + 1)
    first_alone[:2] = mean[0], deviation[0]
    bounds = [(None, None), *((0.0, None if free else 0.0) for free in varies)]
    found = minimize(
        _loss, first_alone, args=((parts - mean) / scale, ious, first_alone), method="L-BFGS-B", bounds=bounds
    ).x
    weights = np.where(varies, found[1:] / scale, 0.0)
    return np.concatenate([[found[0] - mean @ weights], weights])


def _loss(combination: Floats, standard: Floats, ious: Floats, first_alone: Floats) -> float:
    logits = combination[0] + standard @ combination[1:]
    surprise = np.logaddexp(0.0, logits) - ious * logits
    return float(surprise.mean() + RIDGE * np.square(combination - first_alone)[1:].sum())
