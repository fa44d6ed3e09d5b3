"""The monotone fit: what it must never do, and a relation it must find again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import spearmanr

from segpipe.confidence.combination import class_diversity, fit_combination, given_weights

OWN_ALONE = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0]
# As many classes in equal parts as make it so.
DIVERSITY = 0.75


def scores_of(combination: np.ndarray, parts: np.ndarray) -> np.ndarray:
    return combination[0] + parts @ combination[1:]


def drawn_parts(n_images: int, seed: int = 0) -> np.ndarray:
    """Parts of different centres and spreads, as those of the score are."""
    return np.random.default_rng(seed).normal(
        [0.5, 3.0, -2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        [1.0, 2.0, 0.3, 1.0, 0.3, 0.0, 0.0, 0.0, 0.3, 0.0],
        (n_images, 10),
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_images=st.integers(1, 60), spread=st.sampled_from([0.01, 1, 100]))
def test_weights_are_finite_and_never_negative(seed: int, n_images: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.normal(rng.normal(0, 5, 10), spread * rng.random(10), (n_images, 10))
    ious = rng.choice([0.0, 0.3, 0.9, 1.0], n_images)
    combination = fit_combination(parts, ious, DIVERSITY)
    assert combination.shape == (11,)
    assert np.isfinite(combination).all()
    assert (combination[1:] >= 0).all()


def test_a_planted_relation_is_ranked_as_it_was_planted() -> None:
    parts = drawn_parts(300)
    planted = 0.2 + 0.3 * parts[:, 0] + 2.0 * (parts[:, 8] - 1)
    combination = fit_combination(parts, expit(planted), DIVERSITY)
    assert spearmanr(scores_of(combination, parts), planted).statistic > 0.97
    assert spearmanr(parts[:, 0], planted).statistic < 0.6
    assert combination[2:6].tolist() == [0, 0, 0, 0]


def test_what_is_no_expected_iou_is_silent_however_well_it_knows_these_masks() -> None:
    """It knows the images of the groups that it was taught on, and those alone."""
    parts = drawn_parts(300)
    combination = fit_combination(parts, expit(parts[:, 1] - 3 + 0.1 * parts[:, 0]), DIVERSITY)
    assert combination[2:6].tolist() == [0, 0, 0, 0]


def test_an_expected_iou_that_says_nothing_is_next_to_silent() -> None:
    parts = drawn_parts(300)
    combination = fit_combination(parts, expit(2 * parts[:, 8] - 2), DIVERSITY)
    deviations = parts.std(axis=0)
    assert combination[1] * deviations[0] < 0.5 * combination[9] * deviations[8]


def test_the_fitted_score_is_as_high_as_the_masks_are_good() -> None:
    parts = drawn_parts(200, seed=1)
    ious = expit(-1 + 0.5 * parts[:, 0] + np.random.default_rng(2).normal(0, 0.5, 200))
    assert expit(scores_of(fit_combination(parts, ious, DIVERSITY), parts)).mean() == pytest.approx(
        ious.mean(), abs=1e-3
    )


def test_two_pixels_are_of_different_classes_as_often_as_their_classes_are_diverse() -> None:
    # Of 4 pixels of one class and 6 of another: 2 * 0.4 * 0.6.
    assert class_diversity(np.array([4, 0, 6])) == pytest.approx(0.48)
    assert class_diversity(np.array([25, 25, 25, 25])) == pytest.approx(0.75)
    assert class_diversity(np.array([9, 0])) == 0
    assert class_diversity(np.array([0, 0])) == 0


def test_what_one_class_alone_tells_gives_way_to_what_many_tell() -> None:
    assert given_weights(0.0).tolist() == [1, 0, 0, 0, 0, 1, 0, 3, 0, 0]
    assert given_weights(0.75).tolist() == [0.0625, 0, 0, 0, 0, 1, 0.375, 0.75, 1.125, 0.9375]


def test_what_no_fit_can_weigh_keeps_its_proportions_and_the_score_stays_as_high_as_the_masks_are_good() -> (
    None
):
    parts = drawn_parts(200)
    parts[:, 6] = np.random.default_rng(3).normal(1.0, 0.5, 200)
    ious = expit(0.5 * parts[:, 0])
    combination = fit_combination(parts, ious, DIVERSITY)
    assert (combination[6:] / combination[6]).tolist() == pytest.approx([1, 0.375, 0.75, 1.125, 0.9375])
    assert expit(scores_of(combination, parts)).mean() == pytest.approx(ious.mean(), abs=1e-3)


def test_doubt_that_says_too_much_of_these_masks_is_shrunk_to_what_they_are() -> None:
    """The score is a logit of the expected IoU, not only in its mean."""
    parts = drawn_parts(400)
    parts[:, 7] = np.random.default_rng(3).normal(1.0, 2.0, 400)
    ious = expit(0.3 * (parts[:, 7] - 1))
    scores = scores_of(fit_combination(parts, ious, diversity=0.0), parts)
    assert scores.std() == pytest.approx(0.6, rel=0.1)
    assert expit(scores).std() == pytest.approx(ious.std(), rel=0.1)


@pytest.mark.parametrize(("part", "given"), [(0, 0.0625), (8, 1.125)])
def test_a_part_that_runs_the_wrong_way_gets_what_is_given_alone(part: int, given: float) -> None:
    parts = drawn_parts(200)
    ious = expit(parts[:, 0] + parts[:, 8])
    parts[:, part] = 5 - 2 * ious
    combination = fit_combination(parts, ious, DIVERSITY)
    assert combination[1 + part] / combination[6] == pytest.approx(given)


def test_a_part_that_never_varies_gets_what_is_given_alone_and_harms_nothing() -> None:
    parts = drawn_parts(200)
    parts[:, 8] = 7.5
    combination = fit_combination(parts, expit(parts[:, 0]), DIVERSITY)
    assert combination[9] / combination[6] == pytest.approx(1.125)
    assert expit(scores_of(combination, parts)).mean() == pytest.approx(expit(parts[:, 0]).mean(), abs=1e-3)


def test_no_part_that_varies_leaves_the_own_belief_alone() -> None:
    assert fit_combination(np.full((50, 10), 2.0), np.linspace(0, 1, 50), DIVERSITY).tolist() == OWN_ALONE


@pytest.mark.parametrize("n_images", [0, 1, 9])
def test_fewer_than_ten_images_leave_the_own_belief_alone(n_images: int) -> None:
    parts = drawn_parts(n_images)
    assert fit_combination(parts, expit(5 * parts[:, 2]), DIVERSITY).tolist() == OWN_ALONE


@pytest.mark.parametrize("iou", [0.0, 1.0])
def test_masks_that_are_all_wrong_or_all_right_give_a_finite_score(iou: float) -> None:
    combination = fit_combination(drawn_parts(40), np.full(40, iou), DIVERSITY)
    assert np.isfinite(combination).all()
    scores = scores_of(combination, drawn_parts(40))
    assert (scores.mean() > 1) == (iou == 1.0)


def test_ious_of_exactly_0_and_1_that_a_part_tells_apart_give_a_finite_score() -> None:
    parts = drawn_parts(40)
    ious = (parts[:, 0] > 0.5).astype(float)
    combination = fit_combination(parts, ious, DIVERSITY)
    assert np.isfinite(combination).all()
    scores = scores_of(combination, parts)
    assert scores[ious == 1].mean() > scores[ious == 0].mean() + 1
