from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from segpipe.confidence import selective

LOSSES = [0.2, 0.0, 1.0]
SCORES = [0.9, 0.5, 0.1]  # order as given: cumulative risks 0.2, 0.1, 0.4
METRICS = [selective.aurc, selective.e_aurc, selective.augrc, selective.gap_closed, selective.spearman]

images = st.lists(
    st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.integers(-3, 3).map(float)), min_size=1, max_size=7
)


def split(pairs):
    losses, scores = zip(*pairs, strict=True)
    return list(losses), list(scores)


def test_hand_worked_values():
    aurc = (0.2 + 0.1 + 0.4) / 3
    oracle = (0.0 + 0.1 + 0.4) / 3
    assert selective.aurc(LOSSES, SCORES) == pytest.approx(aurc)
    assert selective.e_aurc(LOSSES, SCORES) == pytest.approx(aurc - oracle)
    assert selective.augrc(LOSSES, SCORES) == pytest.approx((0.2 + 0.2 + 1.2) / 9)
    assert selective.gap_closed(LOSSES, SCORES) == pytest.approx((0.4 - aurc) / (0.4 - oracle))
    assert selective.spearman(LOSSES, SCORES) == pytest.approx(0.5)


def test_curve_and_its_readings():
    curve = selective.risk_coverage_curve(LOSSES, SCORES)
    assert curve.coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.risk.tolist() == pytest.approx([0.2, 0.1, 0.4])
    assert selective.risk_at_coverage(LOSSES, SCORES, 0.5) == pytest.approx(0.1)
    assert selective.risk_at_coverage(LOSSES, SCORES, 0.01) == pytest.approx(0.2)
    assert selective.coverage_at_risk(LOSSES, SCORES, 0.1) == pytest.approx(2 / 3)
    assert selective.coverage_at_risk(LOSSES, SCORES, 0.4) == 1.0
    assert selective.coverage_at_risk(LOSSES, SCORES, 0.05) == 0.0


def test_risk_at_a_coverage_that_is_a_whole_number_of_images():
    losses = np.arange(100) / 100
    assert selective.risk_at_coverage(losses, -losses, 0.07) == pytest.approx(losses[:7].mean())


def test_a_tie_counts_as_the_mean_of_both_orders():
    # 0.9 first, then 0.0 and 1.0 tied: risks 0.2, (0.1 or 0.6), 0.4
    assert selective.aurc([0.2, 0.0, 1.0], [2, 1, 1]) == pytest.approx((0.2 + 0.35 + 0.4) / 3)


def test_a_single_image():
    metrics = selective.selective_metrics([0.3], [0.5])
    assert (metrics.aurc, metrics.e_aurc, metrics.augrc) == pytest.approx((0.3, 0.0, 0.3))
    assert math.isnan(metrics.gap_closed)
    assert math.isnan(metrics.spearman)


def test_constant_scores_are_no_better_than_chance():
    metrics = selective.selective_metrics(LOSSES, [7, 7, 7])
    assert metrics.aurc == pytest.approx(0.4)
    assert metrics.gap_closed == pytest.approx(0)
    assert math.isnan(metrics.spearman)


def test_equal_losses_leave_nothing_to_order():
    metrics = selective.selective_metrics([0.4, 0.4, 0.4], SCORES)
    assert metrics.e_aurc == pytest.approx(0)
    assert math.isnan(metrics.gap_closed)
    assert math.isnan(metrics.spearman)


def test_the_oracle_closes_the_whole_gap_and_its_reverse_loses():
    losses = np.array([0.1, 0.7, 0.3, 0.9])
    assert selective.gap_closed(losses, -losses) == pytest.approx(1)
    assert selective.spearman(losses, -losses) == pytest.approx(1)
    assert selective.gap_closed(losses, losses) < 0


@given(images)
def test_ties_give_the_mean_over_all_tie_breaks(pairs):
    losses, scores = split(pairs[:5])
    ranked = [
        [losses[i] for i in order]
        for order in itertools.permutations(range(len(losses)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    aurcs = [np.mean([np.mean(order[: k + 1]) for k in range(len(order))]) for order in ranked]
    augrcs = [np.mean([np.sum(order[: k + 1]) / len(order) for k in range(len(order))]) for order in ranked]
    assert selective.aurc(losses, scores) == pytest.approx(np.mean(aurcs))
    assert selective.augrc(losses, scores) == pytest.approx(np.mean(augrcs))


@given(images)
def test_no_order_beats_the_oracle(pairs):
    losses, scores = split(pairs)
    assert selective.e_aurc(losses, scores) >= -1e-12
    gap = selective.gap_closed(losses, scores)
    assert math.isnan(gap) or gap <= 1 + 1e-9


@pytest.mark.parametrize("metric", METRICS)
@given(pairs=images, data=st.data())
def test_metrics_ignore_the_order_of_the_images(metric, pairs, data):
    shuffled = data.draw(st.permutations(pairs))
    assert metric(*split(pairs)) == pytest.approx(metric(*split(shuffled)), nan_ok=True)


@pytest.mark.parametrize("metric", METRICS)
@given(pairs=images)
def test_metrics_see_only_the_ranking(metric, pairs):
    losses, scores = split(pairs)
    stretched = [math.exp(score) * 3 - 100 for score in scores]
    assert metric(losses, scores) == pytest.approx(metric(losses, stretched), nan_ok=True)


@given(pairs=images, risk=st.floats(0, 1))
def test_coverage_at_risk_keeps_the_risk(pairs, risk):
    losses, scores = split(pairs)
    coverage = selective.coverage_at_risk(losses, scores, risk)
    assume(coverage > 0)
    assert selective.risk_at_coverage(losses, scores, coverage) <= risk + 1e-9


def test_bootstrap_of_a_score_against_itself_is_zero():
    rng = np.random.default_rng(1)
    losses, scores = rng.random(40), rng.random(40)
    result = selective.paired_bootstrap(losses, scores, scores, selective.aurc, resamples=50)
    assert (result.difference, result.low, result.high) == (0, 0, 0)


def test_bootstrap_finds_a_real_difference_and_repeats_with_its_seed():
    rng = np.random.default_rng(1)
    losses = rng.random(100)
    good, useless = -losses + rng.normal(0, 0.1, 100), rng.random(100)
    first = selective.paired_bootstrap(losses, good, useless, selective.gap_closed, resamples=200, seed=3)
    again = selective.paired_bootstrap(losses, good, useless, selective.gap_closed, resamples=200, seed=3)
    assert first == again
    assert 0 < first.low < first.difference < first.high
    assert first.difference == pytest.approx(
        selective.gap_closed(losses, good) - selective.gap_closed(losses, useless)
    )


def test_bootstrap_interval_has_the_spread_of_a_known_mean():
    # with risk at full coverage of scores that rank alike, the difference is 0; with a metric that reads one
    # score's mean, the interval must be mean +- 1.96 sd / sqrt(n)
    rng = np.random.default_rng(2)
    shown = rng.normal(size=400)
    result = selective.paired_bootstrap(
        np.zeros(400), shown, np.zeros(400), lambda losses, scores: float(scores.mean()), resamples=2000
    )
    half_width = 1.96 * shown.std() / 20
    assert result.low == pytest.approx(shown.mean() - half_width, abs=0.01)
    assert result.high == pytest.approx(shown.mean() + half_width, abs=0.01)


def test_bootstrap_of_an_undefined_metric_is_nan():
    result = selective.paired_bootstrap([0.5, 0.5], [1, 2], [2, 1], selective.gap_closed, resamples=10)
    assert math.isnan(result.low)


@pytest.mark.parametrize(
    ("losses", "scores"), [([], []), ([0.1], [1, 2]), ([0.1, math.nan], [1, 2]), ([0.1, 0.2], [1, math.nan])]
)
def test_unusable_input_is_refused(losses, scores):
    with pytest.raises(ValueError, match=r"losses|scores"):
        selective.aurc(losses, scores)


@pytest.mark.parametrize("coverage", [0, -0.5, 1.1])
def test_a_coverage_out_of_range_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        selective.risk_at_coverage(LOSSES, SCORES, coverage)
