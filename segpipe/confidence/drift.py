"""Whether a run's scores still look like those the policy was calibrated on; needs no labels.

The two-sample Kolmogorov-Smirnov test. A policy keeps quantiles of its calibration scores, not the scores:
the run is held against those of all calibration scores with these quantiles that lie closest to it. Their
distance is at most the true one and their p-value at least the true one, so the stated rate of false alarms
still holds, for any distribution of scores (ties only lower it).

The rate is that of independent images drawn like the calibration images. Frames of one video are not
independent: a run of them can raise an alarm although nothing has changed but the scene.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter
from scipy.stats import ks_2samp

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy

FEWEST_SCORES = 10  # of a run; fewer could only raise an alarm by lying apart from nearly all others
# Scores so close count as equal, in shares of the range from the 5th to the 95th percentile: one image can
# score a little differently on another device or in another batch, and many images may score the same.
SCORE_NOISE = 0.001
_METADATA = "segpipe.drift"  # of a part, where the verdict lies


@dataclass(frozen=True)
class Drift:
    """What the test of one run says.

    distance (0 to 1) is the least possible between the two distributions of scores, p_value the probability
    of at least that if nothing has changed; both None when the scores, or those of the calibration, were too
    few to be tested. n_scores counts the finite scores. alarm: p_value <= false_alarm_rate, which happens in
    at most that share (0 to 1) of runs if nothing has changed.
    """

    p_value: float | None
    distance: float | None
    n_scores: int
    alarm: bool
    false_alarm_rate: float


def drift_metadata(drift: Drift | None) -> dict[str, str]:
    """The verdict as a part's metadata."""
    return {_METADATA: json.dumps(None if drift is None else asdict(drift))}


def drift_of_metadata(metadata: Mapping[bytes, bytes]) -> Drift | None:
    """The verdict in a part's metadata; None when there was no test, or in a part of an older version.

    ValueError when it is damaged.
    """
    return TypeAdapter(Drift | None).validate_json(metadata.get(_METADATA.encode(), b"null"))


def detect_drift(scores: ArrayLike, policy: Policy, false_alarm_rate: float) -> Drift:
    """Test a run's raw discriminator scores (n,) against the policy's calibration.

    Scores that are not finite are left out: no mask with such a score is accepted anyway. No test below 10
    scores, or where even scores all apart from the calibration's would not be rare enough.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not _enough(len(values), policy.n_calibration, false_alarm_rate):
        return Drift(None, None, len(values), False, false_alarm_rate)
    calibration = _closest_calibration(values, np.asarray(policy.score_quantiles), policy.n_calibration)
    test = ks_2samp(calibration, values)
    p_value = float(test.pvalue)
    return Drift(p_value, float(test.statistic), len(values), p_value <= false_alarm_rate, false_alarm_rate)


def _enough(n_scores: int, n_calibration: int, false_alarm_rate: float) -> bool:
    """Two of the C(n + m, n) equally likely orders of both samples keep them apart: no p-value is smaller."""
    smallest = 2 / math.comb(n_scores + n_calibration, n_scores)
    return n_scores >= FEWEST_SCORES and smallest <= false_alarm_rate


def _closest_calibration(
    scores: NDArray[np.float64], quantiles: NDArray[np.float64], n_calibration: int
) -> NDArray[np.float64]:
    """Of all (n_calibration,) scores with these evenly spaced quantiles, those closest to `scores` (n,).

    A quantile between the sorted scores of index i and i + 1 (as numpy.quantile places it) says that at least
    i + 1 scores are not above it, and at most i + 1 below it; where it is the score of index i, at most i.
    """
    index = (n_calibration - 1) * np.linspace(0, 1, len(quantiles))
    not_above = np.concatenate([[0], np.floor(index) + 1])
    below = np.concatenate([np.ceil(index), [n_calibration]])
    noise = SCORE_NOISE * np.subtract(*np.quantile(quantiles, [0.95, 0.05]))
    points = np.unique(np.concatenate([scores, quantiles - noise, quantiles + noise]))
    fewest = not_above[np.searchsorted(quantiles + noise, points, side="right")]
    most = below[np.searchsorted(quantiles - noise, points, side="right")]
    wanted = np.searchsorted(np.sort(scores), points, side="right") * (n_calibration / len(scores))
    counts = np.clip(np.rint(wanted), fewest, most).astype(np.int64)
    return np.repeat(points, np.diff(counts, prepend=0))
