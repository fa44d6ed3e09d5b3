"""Whether a run's scores still look like those the policy was calibrated on; needs no labels.

The two-sample Kolmogorov-Smirnov test. A policy keeps quantiles of its calibration scores, not the scores:
the run is held against those of all calibration scores with these quantiles that lie closest to it. Their
distance is at most the true one and their p-value at least the true one, so the stated rate of false alarms
still holds, for any distribution of scores (ties only lower it).

That is a test of images drawn independently and like the calibration images. But nights differ: a night's
images share their weather and their scenes, and their mean score lies off by more than chance although
nothing has changed. How far, the earlier runs tell: from the spread of their levels (mean normal scores: what
a score's rank among the calibration's is on a standard normal distribution), or whoever runs segpipe states
it. So much is then allowed to the run before the test begins.

The levels add up, too. Runs that are too small to be tested, or off by too little each, are held against the
calibration together with those before them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter
from scipy.special import ndtr, ndtri
from scipy.stats import chi2, ks_2samp, kstwo, t

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy

FEWEST_SCORES = 10  # of a run; fewer could only raise an alarm by lying apart from nearly all others
# Scores so close count as equal, in shares of the range from the 5th to the 95th percentile: one image can
# score a little differently on another device or in another batch, and many images may score the same.
SCORE_NOISE = 0.001
FEWEST_RUNS = 8  # earlier ones that tell how much runs differ; before, they are taken not to
RUNS_TOGETHER = (1, 3, 10, 30)  # so many of the last ones, whose levels add up
SURELY_DIFFER = 0.1  # runs whose levels lie so far apart by chance with this probability do not
_METADATA = "segpipe.drift"  # of a part, where the verdict lies


@dataclass(frozen=True)
class Drift:
    """What the test of one run says.

    distance (0 to 1) is the least possible between the two distributions of scores, p_value the probability
    of at least that if nothing has changed; both None when the scores, or those of the calibration, were too
    few to be tested. n_scores counts the finite scores. alarm: p_value <= false_alarm_rate, which happens in
    at most that share (0 to 1) of runs if nothing has changed. tolerance (0 to 1) is the distance that runs
    may have because they differ, as the `earlier_runs` looked at do or as was stated; distance is beyond it.
    """

    p_value: float | None
    distance: float | None
    n_scores: int
    alarm: bool
    false_alarm_rate: float
    tolerance: float = 0.0
    earlier_runs: int = 0


@dataclass(frozen=True)
class RunLevel:
    """The mean normal score (see above) of a run's `n_scores` finite scores, at least one."""

    n_scores: int
    level: float


def drift_metadata(drift: Drift | None) -> dict[str, str]:
    """The verdict as a part's metadata."""
    return {_METADATA: json.dumps(None if drift is None else asdict(drift))}


def drift_of_metadata(metadata: Mapping[bytes, bytes]) -> Drift | None:
    """The verdict in a part's metadata; None when there was no test, or in a part of an older version.

    ValueError when it is damaged.
    """
    return TypeAdapter(Drift | None).validate_json(metadata.get(_METADATA.encode(), b"null"))


def detect_drift(
    scores: ArrayLike,
    policy: Policy,
    false_alarm_rate: float,
    earlier: Sequence[RunLevel] = (),
    deviation: float | None = None,
) -> Drift:
    """Test a run's raw discriminator scores (n,) against the policy's calibration.

    `earlier` are the levels of the policy's runs before this one that gave no alarm, oldest first;
    `deviation` is that between runs' levels, in standard deviations of a score, learnt from them when None.
    Scores that
    are not finite are left out: no mask with such a score is accepted anyway. The run alone is not tested
    below 10 scores, or where even scores all apart from the calibration's would not be rare enough; together
    with earlier ones it is.
    """
    run = level_of(scores, policy)
    n_scores, tested = run.n_scores if run else 0, earlier[-RUNS_TOGETHER[-1] + 1 :]
    spread = _spread(earlier, deviation)
    tolerance = _as_distance(spread.largest(false_alarm_rate / 4))
    distance, p_alone = _run_alone(scores, policy, false_alarm_rate, tolerance)
    p_values = [
        p for p in (p_alone, _runs_together(run, tested, spread, policy.n_calibration)) if p is not None
    ]
    if not p_values:
        return Drift(None, None, n_scores, False, false_alarm_rate, tolerance, len(tested))
    p_value = min(1.0, len(p_values) * min(p_values))  # either test may be wrong
    alarm = p_value <= false_alarm_rate
    return Drift(p_value, distance, n_scores, alarm, false_alarm_rate, tolerance, len(tested))


def level_of(scores: ArrayLike, policy: Policy) -> RunLevel | None:
    """The level of a run's raw discriminator scores (n,) against the policy's; None without a finite one."""
    values = _finite(scores)
    if not values.size or not policy.score_quantiles:
        return None
    quantiles, at = np.asarray(policy.score_quantiles), np.linspace(0, 1, len(policy.score_quantiles))
    below = np.searchsorted(quantiles, values, side="left"), np.searchsorted(quantiles, values, side="right")
    tied = (at[np.minimum(below[0], len(at) - 1)] + at[np.maximum(below[1] - 1, 0)]) / 2
    rank = np.where(below[1] > below[0], tied, np.interp(values, quantiles, at))
    margin = 0.5 / policy.n_calibration
    return RunLevel(len(values), float(ndtri(np.clip(rank, margin, 1 - margin)).mean()))


def levels_of(runs: Iterable[ArrayLike], policy: Policy) -> list[RunLevel]:
    """The levels of several runs; those without a finite score have none."""
    return [level for scores in runs if (level := level_of(scores, policy)) is not None]


@dataclass(frozen=True)
class _Spread:
    """The standard deviation of runs' levels, and the degrees of freedom of what it was estimated from."""

    deviation: float
    freedom: float

    def largest(self, rate: float) -> float:
        """So far off, to either side, the level of a share `rate` of runs is at most."""
        return self.deviation * float(t.isf(rate / 2, self.freedom)) if self.deviation else 0.0


def _spread(earlier: Sequence[RunLevel], stated: float | None) -> _Spread:
    """How much runs differ beyond what chance makes of their images.

    From the differences of each two runs in a row (von Neumann's estimate), so that a lasting change that
    was too small for an alarm does not pass for nights that differ.
    """
    if stated is not None:
        return _Spread(stated, math.inf)
    if len(earlier) < FEWEST_RUNS:
        return _Spread(0.0, math.inf)
    sizes, levels = np.array([[run.n_scores, run.level] for run in earlier]).T
    by_chance = 1 / sizes[1:] + 1 / sizes[:-1]
    squares, freedom = np.diff(levels) ** 2, 2 * (len(earlier) - 1) / 3  # of differences that share a run
    if float((squares / by_chance).mean()) * freedom <= chi2.isf(SURELY_DIFFER, freedom):
        return _Spread(0.0, math.inf)
    return _Spread(math.sqrt(max(0.0, float((squares - by_chance).mean()) / 2)), freedom)


def _as_distance(shift: float) -> float:
    """The distance of two normal distributions whose means lie so many standard deviations apart."""
    return float(2 * ndtr(shift / 2) - 1)


def _run_alone(
    scores: ArrayLike, policy: Policy, false_alarm_rate: float, tolerance: float
) -> tuple[float | None, float | None]:
    """The distance of a run's scores from the calibration's beyond the tolerance, and its p-value."""
    values = _finite(scores)
    if not _enough(len(values), policy.n_calibration, false_alarm_rate):
        return None, None
    calibration = _closest_calibration(values, np.asarray(policy.score_quantiles), policy.n_calibration)
    test = ks_2samp(calibration, values)
    if not tolerance:
        return float(test.statistic), float(test.pvalue)
    distance = max(0.0, float(test.statistic) - tolerance)
    size = len(values) * len(calibration) / (len(values) + len(calibration))
    return distance, min(
        1.0, 2 * float(kstwo.sf(distance, max(1, round(size))))
    )  # the other half is the tolerance's


def _runs_together(
    run: RunLevel | None, earlier: Sequence[RunLevel], spread: _Spread, n_calibration: int
) -> float | None:
    """The p-value of the mean levels of this run and so many before it; None for a run by itself."""
    if run is None or not earlier:
        return None
    runs = [*earlier, run]
    together = [runs[-n:] for n in RUNS_TOGETHER if n <= len(runs)]
    return min(1.0, len(together) * min(_of_mean_level(some, spread, n_calibration) for some in together))


def _of_mean_level(runs: Sequence[RunLevel], spread: _Spread, n_calibration: int) -> float:
    sizes, levels = np.array([[run.n_scores, run.level] for run in runs]).T
    weights = 1 / (spread.deviation**2 + 1 / sizes)
    error = math.sqrt(1 / float(weights.sum()) + 1 / n_calibration)
    return float(2 * t.sf(abs(float(np.average(levels, weights=weights))) / error, spread.freedom))


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    return values[np.isfinite(values)]


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
