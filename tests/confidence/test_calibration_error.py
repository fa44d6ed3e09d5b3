from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_policy import make_policy

from segpipe.confidence.calibration_error import (
    cross_validated_error,
    error_of_a_perfect_map,
    expected_calibration_error,
)
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import display_confidence

share = st.integers(0, 8).map(lambda n: n / 8)
images = st.lists(st.tuples(share, share), min_size=1, max_size=12)


def test_error_of_hand_worked_bins():
    # bins {0.1, 0.2} and {0.6, 0.9}: |0.15 - 0.25| and |0.75 - 0.7|, half of the images each
    assert expected_calibration_error([0.1, 0.6, 0.2, 0.9], [0.2, 0.5, 0.3, 0.9], 2) == pytest.approx(0.075)


def test_bins_of_unlike_size_weigh_by_their_images():
    # bins {0, 0.5} and {1}: |0.25 - 0.5| twice and |1 - 0.4| once
    assert expected_calibration_error([0, 0.5, 1], [0.5, 0.5, 0.4], 2) == pytest.approx((2 * 0.25 + 0.6) / 3)


def test_fewer_images_than_bins_are_a_bin_each():
    assert expected_calibration_error([0.2, 0.4], [0.3, 0.2]) == pytest.approx(0.15)


@given(images)
def test_one_bin_is_the_gap_of_the_means(pairs):
    predicted, actual = np.transpose(pairs)
    error = expected_calibration_error(predicted, actual, 1)
    assert error == pytest.approx(abs(predicted.mean() - actual.mean()))


@given(images, st.data())
def test_the_order_of_the_images_does_not_matter(pairs, data):
    shuffled = data.draw(st.permutations(pairs))
    expected = expected_calibration_error(*np.transpose(pairs), 3)
    assert expected_calibration_error(*np.transpose(shuffled), 3) == pytest.approx(expected)


def test_equal_predictions_share_their_mean():
    assert expected_calibration_error([0.5] * 4, [0.0, 0.0, 1.0, 1.0]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("predicted", "actual"), [([], []), ([0.1], [0.1, 0.2]), ([np.nan], [0.1]), ([0.1], [np.nan])]
)
def test_unusable_input_is_refused(predicted, actual):
    with pytest.raises(ValueError, match="predicted"):
        expected_calibration_error(predicted, actual)


def policy_for(scores, ious, **options):
    target = BadFraction(0.5, 0.1)
    return make_policy(scores, ious, "0123456789ab", target, 0.9, "f" * 64, "2026-01-02T03:04:05Z", **options)


def test_leaving_one_group_out_is_a_policy_made_without_it():
    rng = np.random.default_rng(4)
    scores, group = rng.normal(size=60), np.repeat(list("abc"), 20)
    ious = np.clip(0.5 + scores / 5 + rng.normal(0, 0.1, 60), 0, 1)
    shown = np.empty(60)
    for name in "abc":
        others = policy_for(scores[group != name], ious[group != name])
        shown[group == name] = [display_confidence(others, score) for score in scores[group == name]]
    expected = expected_calibration_error(shown, ious)
    assert cross_validated_error(scores, ious, group) == pytest.approx(expected)
    assert policy_for(scores, ious, group=group.tolist()).calibration_error == pytest.approx(expected)


def test_the_error_is_not_flattered_by_the_images_that_were_fitted():
    # a score that knows nothing: the fit follows the noise of its own images, honest error sees it
    rng = np.random.default_rng(5)
    scores, ious = rng.normal(size=100), rng.random(100)
    policy = policy_for(scores, ious)
    in_sample = expected_calibration_error([display_confidence(policy, score) for score in scores], ious)
    assert in_sample == pytest.approx(0, abs=0.02)
    assert policy.calibration_error > 0.05


def test_a_good_score_of_many_images_has_a_small_error():
    rng = np.random.default_rng(6)
    scores = rng.random(2000)
    assert cross_validated_error(scores, np.clip(scores + rng.normal(0, 0.05, 2000), 0, 1)) < 0.02


def test_an_offset_between_groups_shows_only_when_groups_are_given():
    # every group has an offset of its own that no other group tells
    group = np.repeat(np.arange(6), 50)
    scores = np.random.default_rng(7).random(300)
    ious = 0.3 * scores + 0.1 * group
    within = cross_validated_error(scores, ious)
    across = cross_validated_error(scores, ious, group)
    assert across > within


@pytest.mark.parametrize(
    ("n_images", "group"), [(9, None), (1, None), (9, list("aabbccdde")), (20, ["one"] * 20)]
)
def test_too_few_images_or_groups_tell_nothing(n_images, group):
    scores = np.arange(float(n_images))
    assert cross_validated_error(scores, scores / n_images, group) is None


def test_the_same_images_give_the_same_error():
    rng = np.random.default_rng(8)
    scores, ious = rng.random(30), rng.random(30)
    assert cross_validated_error(scores, ious) == cross_validated_error(scores, ious)


@pytest.mark.parametrize(("n", "expected"), [(20, 0.072), (100, 0.034), (400, 0.017)])
def test_a_perfect_map_is_off_by_about_as_much_as_its_floor_says(n: int, expected: float) -> None:
    random = np.random.default_rng(0)
    errors, floors = [], []
    for _ in range(300):
        shown = random.uniform(0.4, 0.9, n)
        true = np.clip(shown + random.normal(scale=0.135, size=n), 0, 1)
        errors.append(expected_calibration_error(shown, true))
        floors.append(error_of_a_perfect_map(shown, true))
    assert np.mean(errors) == pytest.approx(expected, rel=0.1)
    assert np.mean([floor for floor in floors if floor is not None]) == pytest.approx(expected, rel=0.1)


def test_frames_that_are_off_together_raise_the_floor() -> None:
    random = np.random.default_rng(0)
    video = np.repeat(np.arange(40), 10)
    shown = np.repeat(random.uniform(0.4, 0.9, 40), 10)
    errors, floors = [], []
    for _ in range(200):
        true = shown + np.repeat(random.normal(scale=0.1, size=40), 10)
        errors.append(expected_calibration_error(shown, true))
        floors.append(error_of_a_perfect_map(shown, true, video))
    assert np.mean(floors) == pytest.approx(np.mean(errors), rel=0.15)
    assert np.mean(errors) > 2 * (error_of_a_perfect_map(shown, true) or 0)


def test_a_floor_worked_by_hand() -> None:
    # Gaps of -0.1, 0.1 and 0.3: around their mean of 0.1 the sum spreads by sqrt(0.08 * 3 / 2), and the
    # standard deviation of three normal values is too small by a factor of sqrt(pi) / 2 on average.
    floor = error_of_a_perfect_map([0.5, 0.6, 0.7], [0.4, 0.7, 1.0], n_bins=1)
    assert floor == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(0.12) / 3 * 2 / np.sqrt(np.pi))
    assert error_of_a_perfect_map([0.5, 0.6], [0.4, 0.7], ["a", "a"], n_bins=1) is None
