from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from segpipe.confidence.betting import betting_p_value
from segpipe.confidence.guarantee import (
    candidate_thresholds,
    certify,
    certify_mean_loss,
    coverages_to_test,
    coverages_to_test_mean_loss,
    fewest_accepted,
    one_per_group,
)
from segpipe.errors import PolicyError


def all_accepted(n_images: int, n_bad: int, max_bad_fraction: float, confidence: float):
    bad = np.arange(n_images) < n_bad
    return certify(np.ones(n_images), bad, [1.0], max_bad_fraction, confidence)


def test_a_promise_too_small_for_any_number_of_images_is_answered_at_once():
    assert fewest_accepted(0, 1e-10, 0.95) == pytest.approx(-math.log(0.05) / 1e-10)
    assert fewest_accepted(0, 1e-300, 1 - 1e-16) == fewest_accepted(3, 5e-324, 0.95) == 2**53


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
        None,
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


# Groups: images that depend on each other.


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans(), st.integers(1, 4)), min_size=1, max_size=60),
    st.integers(-5, 5),
    st.sampled_from([certify, certify_mean_loss]),
)
@settings(max_examples=50)
def test_more_frames_of_a_group_prove_nothing_more(groups, threshold, certified):
    scores, bad, repeats = (np.array(column) for column in zip(*groups, strict=True))
    names = np.array([f"sequence {number:03d}" for number in range(len(groups))])
    frames = [np.repeat(column, repeats) for column in (scores, bad, names)]
    by_group = certified(*frames[:2], [threshold], 0.4, 0.6, group=frames[2].tolist())
    assert by_group == certified(scores, bad, [threshold], 0.4, 0.6, group=names.tolist())
    assert by_group.n_calibration == len(groups)
    if certified is certify:
        assert by_group == certify(scores, bad, [threshold], 0.4, 0.6)


def test_a_single_group_of_many_good_images_proves_nothing():
    certificate = certify(np.ones(500), np.zeros(500), [1.0], 0.1, 0.9, group=["video"] * 500)
    assert (certificate.threshold, certificate.n_calibration) == (None, 1)
    assert certificate.labelled_images_needed == 21  # more groups


@pytest.mark.parametrize("certified", [certify, certify_mean_loss])
@pytest.mark.parametrize("missing", [None, math.nan, ""])
def test_an_image_without_a_group_is_refused(certified, missing):
    with pytest.raises(PolicyError, match=r"image 1 has no group .*: name one for every image"):
        certified([1, 2, 3], [0, 0, 0], [1], 0.1, 0.9, group=["a", missing, "b"])
    with pytest.raises(PolicyError, match="image 0 has no group"):
        certified([1] * 50, [0] * 50, [1], 0.1, 0.9, group=[missing] * 50)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_one_image_of_each_group_is_drawn(group):
    drawn = one_per_group(group)
    assert sorted(group[row] for row in drawn) == sorted(set(group))


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.lists(st.sampled_from("xyz"), max_size=9)
)
def test_what_is_drawn_of_a_group_depends_on_no_other_groups_size_or_place(group, others):
    first = one_per_group([*group, "x", "y", "z"])[: len(set(group))]
    moved = one_per_group([*others, *group, "x", "y", "z"])[: len(set(group))]
    assert (moved - len(others)).tolist() == first.tolist()


def test_every_image_of_a_group_is_as_likely_to_be_drawn():
    places = one_per_group(np.repeat(np.arange(3000), 3)) % 3
    assert np.bincount(places) / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("certified", [certify, certify_mean_loss])
def test_a_label_is_needed_for_each_image(certified):
    with pytest.raises(PolicyError, match="2 scores and 1 group labels differ"):
        certified([1, 2], [0, 0], [1], 0.1, 0.9, group=["a"])


# The mean loss.


def test_mean_loss_certificate_of_a_hand_worked_sequence():
    # 1.11^30 and 1.11^39 are above 10, but for the first bets; a 40th image, shuffled to the front, loses all
    scores = np.arange(40, 0, -1.0)
    losses = np.where(scores == 1, 1.0, 0.0)
    certificate = certify_mean_loss(scores, losses, [11.0, 2.0], 0.1, 0.9)
    assert (certificate.threshold, certificate.accepted, certificate.mean_loss) == (2.0, 39, 0.0)
    assert certificate.p_value == betting_p_value(np.zeros(39), 0.1, 0.9)
    assert (certificate.n_calibration, certificate.tested, certificate.labelled_images_needed) == (40, 2, 0)


def test_the_mean_loss_is_that_of_the_accepted_images():
    scores = np.array([3.0] * 50 + [2.0] * 50 + [math.nan] * 10)
    losses = np.array([0.1] * 50 + [0.3] * 50 + [1.0] * 10)
    certificate = certify_mean_loss(scores, losses, [3.0, 2.0], 0.3, 0.9)
    assert (certificate.threshold, certificate.accepted) == (2.0, 100)
    assert certificate.mean_loss == pytest.approx(0.2)
    assert certify_mean_loss(scores, losses, [3.0], 0.3, 0.9).mean_loss == pytest.approx(0.1)


def test_the_mean_loss_sequence_stops_at_the_first_failure():
    scores = np.arange(400, 0, -1.0)
    losses = np.where(scores > 370, 0.5, 0.0)
    assert certify_mean_loss(scores, losses, [1.0], 0.1, 0.9).threshold == 1.0
    stopped = certify_mean_loss(scores, losses, [371.0, 1.0], 0.1, 0.9)
    assert (stopped.threshold, stopped.accepted, stopped.mean_loss, stopped.p_value, stopped.tested) == (
        *(None, 0, None, 1.0),
        1,
    )
    assert stopped.labelled_images_needed is None


def test_mean_loss_thresholds_too_strict_to_pass_are_skipped():
    scores = np.arange(100, 0, -1.0)
    certificate = certify_mean_loss(scores, np.zeros(100), [79.0, 78.0, 50.0], 0.1, 0.9)
    assert (certificate.threshold, certificate.tested) == (50.0, 2)  # 22 accepted cannot pass, 23 do


@pytest.mark.parametrize("mean_loss", [0.0, 0.05, 0.2])
def test_labelled_images_needed_for_a_mean_loss_suffice(mean_loss):
    def half_accepted(n_images: int):
        scores = np.tile([1.0, 0.0], n_images // 2)
        return certify_mean_loss(scores, np.full(len(scores), mean_loss), [1.0], 0.25, 0.9)

    few = half_accepted(10)
    assert few.threshold is None
    needed = 10 + few.labelled_images_needed
    assert half_accepted(needed + 2).threshold == 1.0
    assert half_accepted(needed - 2).threshold is None


def test_no_number_of_images_helps_where_too_much_is_lost():
    certificate = certify_mean_loss(np.ones(100), np.full(100, 0.4), [1.0], 0.3, 0.9)
    assert (certificate.threshold, certificate.labelled_images_needed) == (None, None)


@pytest.mark.parametrize(("n_images", "start"), [(1000, 109), (200, 50), (60, 23), (15, 1)])
def test_the_mean_loss_sequence_starts_where_it_can_forgive_what_it_can_afford(n_images, start):
    coverages = coverages_to_test_mean_loss(n_images, 0.1, 0.9)
    assert round(coverages[0] * n_images) == start
    assert coverages[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(coverages))


@pytest.mark.parametrize(
    ("losses", "target", "message"),
    [
        ([0.1], 0.1, "differ"),
        ([0.1, 1.1], 0.1, "losses holds 1.1"),
        ([0.1, math.nan], 0.1, "losses holds nan"),
        ([0.1, 0.2], 1.0, "max mean loss"),
    ],
)
def test_wrong_losses_are_named_in_one_line(losses, target, message):
    with pytest.raises(PolicyError, match=message) as caught:
        certify_mean_loss([1, 2], losses, [1], target, 0.9)
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


def loses(score):
    """The mean of the losses at a score."""
    return np.clip(0.35 - 0.15 * score, 0.02, 0.98)


def true_mean_loss(thresholds):
    density = norm.pdf(GRID)
    accepted = np.cumsum(density[::-1])[::-1]
    lost = np.cumsum((density * loses(GRID))[::-1])[::-1]
    return np.interp(thresholds, GRID, lost / accepted)


@pytest.mark.parametrize("source", ["calibration scores", "other scores"])
def test_the_mean_loss_promise_is_broken_no_more_often_than_allowed(source):
    draws, n_images, target, delta = 300, 200, 0.25, 0.1
    rng = np.random.default_rng(8)
    coverages = coverages_to_test_mean_loss(n_images, target, 1 - delta)
    thresholds = []
    for _ in range(draws):
        scores = rng.normal(size=n_images)
        losses = rng.beta(10 * loses(scores), 10 * (1 - loses(scores)))
        unlabelled = scores if source == "calibration scores" else rng.normal(size=n_images)
        candidates = candidate_thresholds(unlabelled, coverages)
        certificate = certify_mean_loss(scores, losses, candidates, target, 1 - delta)
        thresholds.append(np.inf if certificate.threshold is None else certificate.threshold)
    used = np.array([threshold for threshold in thresholds if threshold < np.inf])
    broken = int((true_mean_loss(used) > target).sum())
    assert broken / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    assert len(used) / draws > 0.9


@pytest.mark.parametrize(("grouped", "kept"), [(True, True), (False, False)])
def test_frames_that_depend_on_each_other_break_the_promise_unless_grouped(grouped, kept):
    """40 sequences of 20 frames, good or bad together, just above the target: all frames score alike."""
    draws, sequences, target, delta = 300, 40, 0.1, 0.1
    rng = np.random.default_rng(9)
    names = np.repeat(np.arange(sequences), 20).tolist()
    broken = 0
    for _ in range(draws):
        bad = np.repeat(rng.random(sequences) < 0.11, 20)
        certificate = certify(np.ones(len(bad)), bad, [1.0], target, 1 - delta, names if grouped else None)
        broken += certificate.threshold is not None
    assert (broken / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)) == kept
