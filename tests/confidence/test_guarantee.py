from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from segpipe.confidence.guarantee import (
    candidate_thresholds,
    certify,
    coverages_to_test,
    fewest_accepted,
)
from segpipe.errors import PolicyError


def all_accepted(n_images: int, n_bad: int, max_bad_fraction: float, confidence: float):
    bad = np.arange(n_images) < n_bad
    return certify(np.ones(n_images), bad, [1.0], max_bad_fraction, confidence)


@pytest.mark.parametrize(("target", "fewest"), [(0.1, 22), (0.05, 59)])
def test_fewest_accepted_images_without_a_bad_one(target, fewest):
    assert all_accepted(fewest, 0, target, 1 - target).threshold == 1.0
    assert all_accepted(fewest - 1, 0, target, 1 - target).threshold is None
    assert fewest_accepted(0, target, 1 - target) == fewest


@pytest.mark.parametrize(("n_images", "passes"), [(37, False), (38, True)])
def test_one_bad_image_needs_more_accepted_ones(n_images, passes):
    # 0.9^37 + 37 * 0.1 * 0.9^36 = 0.104, one more image gives 0.095
    assert (all_accepted(n_images, 1, 0.1, 0.9).threshold is not None) == passes


def test_certificate_of_a_hand_worked_sequence():
    # 40 images, one bad at rank 38: 22 and 37 good ones pass (0.9^22, 0.9^37), 40 with one bad pass too
    scores = np.arange(40, 0, -1.0)
    bad = np.arange(40) == 37
    certificate = certify(scores, bad, [19.0, 4.0, 1.0], 0.1, 0.9)
    assert (certificate.threshold, certificate.accepted, certificate.bad) == (1.0, 40, 1)
    assert certificate.p_value == pytest.approx(0.9**40 + 40 * 0.1 * 0.9**39)
    assert (certificate.n_calibration, certificate.tested, certificate.labelled_images_needed) == (40, 3, 0)


def test_the_sequence_stops_at_the_first_failure_even_if_a_later_threshold_would_pass():
    scores = np.arange(400, 0, -1.0)
    bad = np.isin(np.arange(400), [0, 1])
    strict, loose = 371.0, 1.0  # 30 accepted, 2 bad: fails; 400 accepted, 2 bad: passes by itself
    assert certify(scores, bad, [loose], 0.1, 0.9).threshold == loose
    stopped = certify(scores, bad, [strict, loose], 0.1, 0.9)
    assert (stopped.threshold, stopped.tested) == (None, 1)


def test_the_last_threshold_that_passed_is_used():
    scores = np.arange(100, 0, -1.0)
    bad = np.arange(100) >= 50
    certificate = certify(scores, bad, [61.0, 51.0, 31.0, 1.0], 0.1, 0.9)
    assert (certificate.threshold, certificate.accepted, certificate.tested) == (51.0, 50, 3)


def test_thresholds_too_strict_to_pass_are_skipped_not_failed():
    scores = np.arange(100, 0, -1.0)
    good = np.zeros(100, dtype=bool)
    certificate = certify(scores, good, [100.0, 95.0, 79.0, 70.0], 0.1, 0.9)
    assert (certificate.threshold, certificate.tested) == (70.0, 2)


def test_the_order_of_candidates_and_images_does_not_matter():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=300)
    bad = rng.random(300) < norm.cdf(-scores - 1)
    candidates = candidate_thresholds(scores, np.linspace(0.1, 1, 20))
    expected = certify(scores, bad, candidates, 0.1, 0.9)
    assert expected.threshold is not None
    order = rng.permutation(300)
    assert certify(scores[order], bad[order], candidates[::-1], 0.1, 0.9) == expected


def test_images_at_the_threshold_are_accepted_and_nan_scores_never():
    scores = [1.0] * 30 + [math.nan] * 10 + [0.5] * 10
    bad = [False] * 30 + [True] * 10 + [False] * 10
    certificate = certify(scores, bad, [1.0], 0.1, 0.9)
    assert (certificate.accepted, certificate.bad, certificate.n_calibration) == (30, 0, 50)


def test_nothing_promised_accepts_nothing():
    certificate = all_accepted(10, 0, 0.1, 0.9)
    assert (certificate.threshold, certificate.accepted, certificate.bad, certificate.p_value) == (
        None,
        0,
        0,
        1,
    )


def test_labelled_images_needed_without_a_bad_image():
    # half of 20 images pass the threshold, none bad: 22 accepted images need 44 labelled ones
    scores = [1.0] * 10 + [0.0] * 10
    assert certify(scores, [False] * 20, [1.0], 0.1, 0.9).labelled_images_needed == 44 - 20


def test_labelled_images_needed_at_an_observed_bad_fraction():
    certificate = all_accepted(40, 2, 0.1, 0.9)
    needed = 40 + certificate.labelled_images_needed
    assert certificate.threshold is None
    assert all_accepted(needed, math.floor(needed * 2 / 40), 0.1, 0.9).threshold == 1.0
    fewer = range(41, needed)
    assert all(binom.cdf(math.ceil(n * 2 / 40), n, 0.1) > 0.1 for n in fewer)


def test_no_number_of_images_helps_where_too_many_are_bad():
    assert all_accepted(40, 4, 0.1, 0.9).labelled_images_needed is None


def test_a_looser_threshold_promises_no_help_while_the_first_cannot_pass():
    scores = np.arange(400, 0, -1.0)
    certificate = certify(scores, np.arange(400) < 3, [371.0, 1.0], 0.1, 0.9)
    assert (certificate.threshold, certificate.labelled_images_needed) == (None, None)


def test_candidate_thresholds_accept_the_asked_shares():
    scores = np.arange(1, 101.0)
    assert candidate_thresholds(scores, [0.07, 0.5, 1.0]) == (94.0, 51.0, 1.0)
    assert candidate_thresholds([3, 3, 3, 1], [0.25, 0.5, 1.0]) == (3.0, 1.0)
    assert candidate_thresholds([3, math.nan], [0.5, 1.0]) == (3.0,)


@pytest.mark.parametrize(("n_images", "start"), [(1000, 65), (200, 38), (100, 22), (30, 22)])
def test_the_sequence_starts_where_it_can_forgive_what_it_can_afford(n_images, start):
    coverages = coverages_to_test(n_images, 0.1, 0.9)
    assert round(coverages[0] * n_images) == start
    assert coverages[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(coverages))


def test_too_few_images_still_tell_how_many_are_needed():
    scores = np.arange(20.0)
    candidates = candidate_thresholds(scores, coverages_to_test(20, 0.1, 0.9))
    certificate = certify(scores, scores < 10, candidates, 0.1, 0.9)
    assert (certificate.threshold, certificate.labelled_images_needed) == (None, 44 - 20)


@given(
    bad=st.integers(0, 30),
    max_bad_fraction=st.floats(0.01, 0.5),
    confidence=st.floats(0.5, 0.99),
)
def test_fewest_accepted_is_where_the_binomial_tail_first_passes(bad, max_bad_fraction, confidence):
    fewest = fewest_accepted(bad, max_bad_fraction, confidence)
    delta = 1 - confidence
    assert binom.cdf(bad, fewest, max_bad_fraction) <= delta * (1 + 1e-9)
    assert fewest == bad + 1 or binom.cdf(bad, fewest - 1, max_bad_fraction) > delta * (1 - 1e-9)


@pytest.mark.parametrize(
    ("scores", "bad", "candidates", "target", "confidence", "message"),
    [
        ([1, 2], [True], [1], 0.1, 0.9, "differ"),
        ([], [], [1], 0.1, 0.9, "no calibration images"),
        ([1], [0.3], [1], 0.1, 0.9, "not its IoU"),
        ([1], [True], [math.nan], 0.1, 0.9, "finite"),
        ([1], [True], [1], 0.0, 0.9, "max bad fraction"),
        ([1], [True], [1], 5, 0.9, "max bad fraction"),
        ([1], [True], [1], 0.1, 1.0, "confidence"),
        ([1], [True], [1], 0.1, math.nan, "confidence"),
    ],
)
def test_wrong_input_is_named_in_one_line(scores, bad, candidates, target, confidence, message):
    with pytest.raises(PolicyError, match=message) as caught:
        certify(scores, bad, candidates, target, confidence)
    assert "\n" not in str(caught.value)


# Validity by simulation. A population is given by the chance of a bad mask at each score; scores are normal.


def falling(steepness: float, base_rate: float):
    return lambda score: norm.cdf(norm.ppf(base_rate) - steepness * score)


def flat_just_above_target(score):
    return np.full_like(score, 0.11)


def surest_are_worst(score):
    return np.where(score > 1.2, 0.2, np.where(score > 0, 0.02, 0.3))


POPULATIONS = {
    "weak": falling(0.4, 0.2),
    "strong": falling(1.5, 0.1),
    "useless": flat_just_above_target,
    "surest are worst": surest_are_worst,
}
GRID = np.linspace(-6, 6, 6001)


def true_bad_fraction(bad_probability, thresholds):
    """P(bad | score >= threshold), integrated on a grid."""
    density = norm.pdf(GRID)
    accepted = np.cumsum(density[::-1])[::-1]
    accepted_bad = np.cumsum((density * bad_probability(GRID))[::-1])[::-1]
    return np.interp(thresholds, GRID, accepted_bad / accepted)


@pytest.mark.parametrize("source", ["calibration scores", "other scores"])
@pytest.mark.parametrize("population", POPULATIONS)
def test_the_promise_is_broken_no_more_often_than_allowed(population, source):
    draws, n_images, target, delta = 400, 200, 0.1, 0.1
    rng = np.random.default_rng(7)
    coverages = coverages_to_test(n_images, target, 1 - delta)
    thresholds = []
    for _ in range(draws):
        scores = rng.normal(size=n_images)
        bad = rng.random(n_images) < POPULATIONS[population](scores)
        unlabelled = scores if source == "calibration scores" else rng.normal(size=n_images)
        certificate = certify(scores, bad, candidate_thresholds(unlabelled, coverages), target, 1 - delta)
        thresholds.append(np.inf if certificate.threshold is None else certificate.threshold)
    used = np.array([threshold for threshold in thresholds if threshold < np.inf])
    broken = int((true_bad_fraction(POPULATIONS[population], used) > target).sum())
    assert broken / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    if population == "strong":
        assert len(used) / draws > 0.95  # a test that never certifies would pass the rest
