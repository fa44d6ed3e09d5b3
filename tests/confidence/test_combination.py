"""The monotone fit: what it must never do, and a relation it must find again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import spearmanr

from segpipe.confidence.combination import fit_combination

OWN_ALONE = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def scores_of(combination: np.ndarray, parts: np.ndarray) -> np.ndarray:
    return combination[0] + parts @ combination[1:]


def drawn_parts(n_images: int, seed: int = 0) -> np.ndarray:
    """Parts of different centres and spreads, as those of the score are."""
    return np.random.default_rng(seed).normal(
        [0.5, 3.0, -2.0, 0.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.3, 1.0, 0.3, 0.0, 0.0], (n_images, 7)
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_images=st.integers(1, 60), spread=st.sampled_from([0.01, 1, 100]))
def test_weights_are_finite_and_never_negative(seed: int, n_images: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.normal(rng.normal(0, 5, 7), spread * rng.random(7), (n_images, 7))
    ious = rng.choice([0.0, 0.3, 0.9, 1.0], n_images)
    combination = fit_combination(parts, ious)
    assert combination.shape == (8,)
    assert np.isfinite(combination).all()
    assert (combination[1:] >= 0).all()


def test_a_planted_relation_is_ranked_as_it_was_planted() -> None:
    parts = drawn_parts(300)
    planted = 0.2 + 0.6 * parts[:, 0] + 4.0 * (parts[:, 4] - 1)
    combination = fit_combination(parts, expit(planted))
    assert spearmanr(scores_of(combination, parts), planted).statistic > 0.97
    assert spearmanr(parts[:, 0], planted).statistic < 0.6
    assert combination[2:5].tolist() == [0, 0, 0]


def test_what_is_no_expected_iou_is_silent_however_well_it_knows_these_masks() -> None:
    """It knows the images of the groups that it was taught on, and those alone."""
    parts = drawn_parts(300)
    combination = fit_combination(parts, expit(parts[:, 1] - 3 + 0.1 * parts[:, 0]))
    assert combination[2:5].tolist() == [0, 0, 0]


def test_an_expected_iou_that_says_nothing_is_next_to_silent() -> None:
    parts = drawn_parts(300)
    combination = fit_combination(parts, expit(2 * parts[:, 4] - 2))
    deviations = parts.std(axis=0)
    assert combination[1] * deviations[0] < 0.5 * combination[5] * deviations[4]


def test_the_fitted_score_is_as_high_as_the_masks_are_good() -> None:
    parts = drawn_parts(200, seed=1)
    ious = expit(-1 + 0.5 * parts[:, 0] + np.random.default_rng(2).normal(0, 0.5, 200))
    assert expit(scores_of(fit_combination(parts, ious), parts)).mean() == pytest.approx(
        ious.mean(), abs=1e-3
    )


def test_doubt_all_over_an_image_has_its_own_weight_and_the_score_stays_as_high_as_the_masks_are_good() -> (
    None
):
    parts = drawn_parts(200)
    parts[:, 6] = np.random.default_rng(3).normal(1.0, 0.5, 200)
    ious = expit(0.5 * parts[:, 0])
    combination = fit_combination(parts, ious)
    assert combination[7] == 0.5
    assert expit(scores_of(combination, parts)).mean() == pytest.approx(ious.mean(), abs=1e-3)


def test_a_part_that_runs_the_wrong_way_is_ignored() -> None:
    parts = drawn_parts(200)
    ious = expit(parts[:, 0])
    parts[:, 4] = 5 - 2 * ious
    assert fit_combination(parts, ious)[5] == 0


def test_a_part_that_never_varies_weighs_nothing_and_harms_nothing() -> None:
    parts = drawn_parts(200)
    parts[:, 4] = 7.5
    combination = fit_combination(parts, expit(parts[:, 0]))
    assert combination[5] == 0
    assert expit(scores_of(combination, parts)).mean() == pytest.approx(expit(parts[:, 0]).mean(), abs=1e-3)


def test_no_part_that_varies_leaves_the_own_belief_alone() -> None:
    assert fit_combination(np.full((50, 7), 2.0), np.linspace(0, 1, 50)).tolist() == OWN_ALONE


@pytest.mark.parametrize("n_images", [0, 1, 9])
def test_fewer_than_ten_images_leave_the_own_belief_alone(n_images: int) -> None:
    parts = drawn_parts(n_images)
    assert fit_combination(parts, expit(5 * parts[:, 2])).tolist() == OWN_ALONE


@pytest.mark.parametrize("iou", [0.0, 1.0])
def test_masks_that_are_all_wrong_or_all_right_give_a_finite_score(iou: float) -> None:
    combination = fit_combination(drawn_parts(40), np.full(40, iou))
    assert np.isfinite(combination).all()
    scores = scores_of(combination, drawn_parts(40))
    assert (scores.mean() > 1) == (iou == 1.0)


def test_ious_of_exactly_0_and_1_that_a_part_tells_apart_give_a_finite_score() -> None:
    parts = drawn_parts(40)
    ious = (parts[:, 0] > 0.5).astype(float)
    combination = fit_combination(parts, ious)
    assert np.isfinite(combination).all()
    scores = scores_of(combination, parts)
    assert scores[ious == 1].mean() > scores[ious == 0].mean() + 1
