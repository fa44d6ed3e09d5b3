"""The drift test: never surer than a test on the calibration scores themselves, loud when scores move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_policy import make_policy
from scipy.special import ndtr, ndtri
from scipy.stats import ks_2samp, norm

from segpipe.confidence.certify import BadFraction
from segpipe.confidence.drift import (
    Drift,
    RunLevel,
    detect_drift,
    drift_metadata,
    drift_of_metadata,
    level_of,
)
from segpipe.confidence.policy import Policy

RATE = 0.0001
Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(size=n),
    "skewed": lambda random, n: -random.lognormal(size=n),
    "discrete": lambda random, n: np.round(2 * random.normal(size=n)) / 2,
    "half of them equal": lambda random, n: np.maximum(random.normal(size=n), 0),
}


def calibrated(scores: np.ndarray) -> Policy:
    return make_policy(
        scores, np.ones(len(scores)), "m", BadFraction(0.5, 0.1), 0.9, "f", "2026-11-23T00:00:00+00:00"
    )


def test_scores_apart_from_all_calibration_scores() -> None:
    drift = detect_drift(np.arange(10), calibrated(np.arange(100, 120)), RATE)
    assert drift == Drift(pytest.approx(2 / math.comb(30, 10)), 1.0, 10, True, RATE)


def test_where_the_quantiles_are_the_scores_it_is_the_test_on_the_scores() -> None:
    calibration, scores = np.arange(101), np.arange(20.5, 110.5, 3)
    exact = ks_2samp(calibration, scores)
    drift = detect_drift(scores, calibrated(calibration), RATE)
    assert (drift.distance, drift.p_value) == (pytest.approx(exact.statistic), pytest.approx(exact.pvalue))


def test_a_distance_worked_out_by_hand() -> None:
    # Of 11 calibration scores 0 to 10 and 10 run scores, 4 of each lie below 3.5; all of the run's below 5.5,
    # but only 6 of the 11: 1 - 6/11.
    scores = [0.5, 1.5, 2.5, 3.2, 4.1, 4.2, 4.3, 4.4, 5.1, 5.2]
    drift = detect_drift(scores, calibrated(np.arange(11)), RATE)
    assert drift.distance == pytest.approx(5 / 11)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_calibration=st.integers(12, 450),
    n_scores=st.integers(10, 300),
    shape=st.sampled_from(sorted(SHAPES)),
    shift=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_it_is_never_surer_than_the_test_on_all_calibration_scores(
    seed: int, n_calibration: int, n_scores: int, shape: str, shift: float
) -> None:
    random = np.random.default_rng(seed)
    calibration = SHAPES[shape](random, n_calibration)
    scores = SHAPES[shape](random, n_scores) + shift
    exact, drift = ks_2samp(calibration, scores), detect_drift(scores, calibrated(calibration), RATE)
    assert drift.distance <= exact.statistic + 1e-9
    assert drift.p_value >= exact.pvalue * (1 - 1e-6)


@pytest.mark.parametrize("n_calibration", [60, 100, 200, 400])
def test_it_is_not_much_less_sure_either(n_calibration: int) -> None:
    # What the quantiles leave open is one score in n, or one in a hundred; the noise adds a little.
    random = np.random.default_rng(3)
    for _ in range(30):
        calibration, scores = random.normal(size=n_calibration), random.normal(0.3, 1, 150)
        drift = detect_drift(scores, calibrated(calibration), RATE)
        exact = ks_2samp(calibration, scores).statistic
        assert exact - drift.distance <= 1 / n_calibration + 0.01 + 3 / 150


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_calibration", [30, 200])
def test_unchanged_scores_raise_an_alarm_at_most_at_the_stated_rate(shape: str, n_calibration: int) -> None:
    random, n_runs, rate = np.random.default_rng(11), 300, 0.05
    some, draw, alarms = calibrated(np.arange(n_calibration)), SHAPES[shape], 0
    for _ in range(n_runs):
        quantiles = np.quantile(draw(random, n_calibration), np.linspace(0, 1, 101)).tolist()
        policy = replace(some, score_quantiles=tuple(quantiles))
        alarms += detect_drift(draw(random, int(random.integers(10, 257))), policy, rate).alarm
    assert alarms <= n_runs * rate + 3 * math.sqrt(n_runs * rate * (1 - rate))


def test_it_notices_what_matters_in_a_first_shard() -> None:
    random = np.random.default_rng(5)
    policy = calibrated(random.normal(size=200))
    assert detect_drift(random.normal(-1, 1, 256), policy, RATE).alarm
    assert detect_drift(random.normal(1, 1, 256), policy, RATE).alarm  # too good to be true is no less odd
    some_degraded = np.concatenate([random.normal(size=156), random.normal(-6, 1, 100)])
    assert detect_drift(some_degraded, policy, RATE).alarm
    assert not detect_drift(random.normal(size=256), policy, RATE).alarm


def test_equal_images_may_score_a_little_differently_elsewhere() -> None:
    black, others = np.full(150, 0.3), np.linspace(-2, 2, 150)
    policy = calibrated(np.concatenate([black, others]))
    drift = detect_drift(np.concatenate([black + 1e-6, others]), policy, RATE)
    assert drift.distance < 0.02
    assert not drift.alarm


@pytest.mark.parametrize(("n_scores", "tested"), [(0, False), (9, False), (10, True)])
def test_a_few_scores_are_not_tested(n_scores: int, tested: bool) -> None:
    drift = detect_drift(np.full(n_scores, -1e9), calibrated(np.linspace(0, 1, 200)), RATE)
    assert (drift.p_value is not None, drift.alarm, drift.n_scores) == (tested, tested, n_scores)


@pytest.mark.parametrize(("n_calibration", "tested"), [(1, False), (4, False), (5, True)])
def test_a_calibration_too_small_to_tell_is_not_used(n_calibration: int, tested: bool) -> None:
    # 2 / C(22, 4) = 0.00027 and 2 / C(23, 5) = 0.00006: only five calibration scores could ever show drift.
    drift = detect_drift(np.full(18, -1e9), calibrated(np.linspace(0, 1, n_calibration)), RATE)
    assert (drift.p_value is not None, drift.distance is not None, drift.alarm) == (tested, tested, tested)


def test_scores_that_are_not_finite_are_left_out() -> None:
    policy, scores = calibrated(np.linspace(0, 1, 200)), np.linspace(0, 1, 20)
    with_others = np.concatenate([[math.nan, math.inf], scores, [-math.inf]])
    assert detect_drift(with_others, policy, RATE) == detect_drift(scores, policy, RATE)
    assert detect_drift([math.nan] * 50, policy, RATE) == Drift(None, None, 0, False, RATE)


def test_equal_calibration_scores() -> None:
    policy = calibrated(np.full(50, 0.5))
    assert not detect_drift(np.full(50, 0.5), policy, RATE).alarm
    assert detect_drift(np.full(50, 0.7), policy, RATE).alarm


@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-100, 100), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_unit_and_the_order_of_the_scores_do_not_matter(scale: float, offset: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    calibration, scores = random.normal(size=100), random.normal(0.5, 1, 40)
    drift = detect_drift(scores, calibrated(calibration), RATE)
    moved = detect_drift(
        random.permutation(scale * scores + offset), calibrated(scale * calibration + offset), RATE
    )
    assert moved.distance == pytest.approx(drift.distance, abs=1 / 40)


def run_of(random: np.random.Generator, spread: float, n: int, shift: float = 0.0) -> np.ndarray:
    """The scores of a night whose mean is off by chance, with this deviation, and by a lasting change."""
    return random.normal(shift + random.normal(0, spread), 1, n)


@pytest.mark.parametrize("n_scores", [1, 5, 300])
def test_the_level_of_a_run_is_its_mean_normal_score(n_scores: int) -> None:
    """Against calibration scores that are normal themselves it is the mean of the scores."""
    policy = calibrated(ndtri((np.arange(400) + 0.5) / 400))
    scores = np.random.default_rng(2).uniform(-1.5, 1.5, n_scores)
    found = level_of(scores, policy)
    assert found is not None
    assert (found.n_scores, found.level) == (n_scores, pytest.approx(scores.mean(), abs=0.02))


def test_the_level_of_tied_and_of_strange_scores() -> None:
    policy = calibrated(np.concatenate([np.full(100, 0.5), np.linspace(1, 2, 100)]))
    tied = level_of([0.5], policy)
    assert tied is not None
    assert tied.level == pytest.approx(ndtri(0.25), abs=0.02), "amid those it equals"
    extreme = level_of([1e9, -math.inf, math.nan], policy)
    assert extreme == RunLevel(1, pytest.approx(ndtri(1 - 0.5 / 200)))
    assert level_of([], policy) is level_of([math.nan], policy) is None


def test_without_runs_before_it_is_the_test_of_the_run_alone() -> None:
    random = np.random.default_rng(4)
    policy, scores = calibrated(random.normal(size=200)), random.normal(size=100)
    exact = detect_drift(scores, policy, RATE)
    assert (exact.tolerance, exact.earlier_runs) == (0.0, 0)
    few = detect_drift(scores, policy, RATE, [RunLevel(100, level) for level in (0.9, -0.9) * 3])
    assert few.tolerance == 0.0, "six runs tell too little of how much runs differ"
    assert few.distance == exact.distance


@pytest.mark.parametrize("spread", [0.2, 0.3])
def test_nights_that_differ_are_learnt_and_raise_no_alarm(spread: float) -> None:
    """Of such nights every twentieth, or fifth, raised an alarm when each was tested by itself."""
    random, before, after = np.random.default_rng(6), 0, 0
    for _ in range(4):
        policy, earlier = calibrated(random.normal(size=200)), []
        for night in range(60):
            scores = run_of(random, spread, 256)
            found = detect_drift(scores, policy, RATE, earlier)
            before += night >= 30 and detect_drift(scores, policy, RATE).alarm
            after += night >= 30 and found.alarm
            if not found.alarm and (level := level_of(scores, policy)):
                earlier.append(level)
        assert len(earlier) > 30
    assert before >= 2
    assert after == 0


def test_what_nights_may_differ_by_can_be_stated() -> None:
    """A fifth of a standard deviation: 3.9 times that is 0.78, two normals so far apart 0.30 of distance."""
    random = np.random.default_rng(8)
    policy = calibrated(random.normal(size=200))
    found = detect_drift(random.normal(0.6, 1, 256), policy, 4 * 0.0001, deviation=0.2)
    assert found.tolerance == pytest.approx(2 * ndtr(0.2 * 3.8906 / 2) - 1, abs=1e-4)
    assert not found.alarm
    assert detect_drift(random.normal(0.6, 1, 256), policy, RATE, deviation=0.0).alarm
    assert detect_drift(random.normal(2.5, 1, 256), policy, RATE, deviation=0.2).alarm


def test_runs_too_small_to_be_tested_add_up() -> None:
    random = np.random.default_rng(9)
    policy = calibrated(random.normal(size=200))
    assert detect_drift(random.normal(-1.5, 1, 4), policy, RATE).p_value is None
    earlier, alarms = [], []
    for night in range(40):
        scores = run_of(random, 0.0, 4, -1.5 if night >= 20 else 0.0)
        alarms.append(detect_drift(scores, policy, RATE, earlier).alarm)
        if not alarms[-1] and (level := level_of(scores, policy)):
            earlier.append(level)
    assert not any(alarms[:20])
    assert any(alarms[20:30])


def test_the_levels_of_several_runs_by_hand() -> None:
    """Ten runs of 25 with a level of 0.5 each, against 400 images: 0.5 off, with an error of 0.081."""
    policy = calibrated(ndtri((np.arange(400) + 0.5) / 400))
    few = np.full(3, 0.5)
    found = detect_drift(few, policy, RATE, [RunLevel(25, 0.5)] * 9)
    together = [math.sqrt(1 / n + 1 / 400) for n in (3, 53, 228)]  # the last run, the last three, all ten
    expected = 3 * min(2 * norm.sf(0.5 / error) for error in together)
    assert found.p_value == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("n_scores", [3, 40])
def test_unchanged_runs_together_raise_an_alarm_at_most_at_the_stated_rate(n_scores: int) -> None:
    random, rate, alarms, runs = np.random.default_rng(12), 0.05, 0, 0
    for _ in range(40):
        policy, earlier = calibrated(random.normal(size=100)), []
        for _ in range(12):
            scores = random.normal(size=n_scores)
            found = detect_drift(scores, policy, rate, earlier)
            alarms, runs = alarms + found.alarm, runs + 1
            if not found.alarm and (level := level_of(scores, policy)):
                earlier.append(level)
    # Nights of one year share their calibration, so that years and not nights are independent.
    assert alarms <= runs * rate + 3 * 12 * math.sqrt(40 * rate * (1 - rate)) / 2


def test_a_verdict_of_an_earlier_version_is_read() -> None:
    old = b'{"p_value":0.5,"distance":0.1,"n_scores":40,"alarm":false,"false_alarm_rate":0.0001}'
    assert drift_of_metadata({b"segpipe.drift": old}) == Drift(0.5, 0.1, 40, False, RATE)
    new = Drift(0.5, None, 4, False, RATE, 0.1, 7)
    stored = {name.encode(): text.encode() for name, text in drift_metadata(new).items()}
    assert drift_of_metadata(stored) == new
