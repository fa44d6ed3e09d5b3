"""What a draw says about the masks it was drawn from: bounds that hold whatever these have in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import bisect
from scipy.special import rel_entr

from segpipe.confidence.sampled_mean import Stratum, answers_needed, sampled_bounds, sampled_mean


def stratum(masks: int, losses: list[float] | np.ndarray, weight: float = 1.0) -> Stratum:
    values = np.asarray(losses, dtype=float)
    return Stratum(masks, masks * weight, np.full(len(values), weight), values)


def chernoff(losses: list[float], error: float) -> float:
    """The upper bound of a mean by its definition: the smallest of exp(s t) E exp(-s X), to the n, over s."""
    n, mean = len(losses), sum(losses) / len(losses)

    def probability(bound: float) -> float:
        tilts = np.linspace(0, 40, 200_001)
        return float(n * (tilts * mean + np.log1p(bound * np.expm1(-tilts))).min())

    return bisect(lambda bound: probability(bound) - math.log(error), mean, 1 - 1e-9)


@given(st.integers(1, 60), st.data())
def test_of_equal_chances_it_is_chernoffs_bound(n: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, n - 1))
    losses = [1.0] * bad + [0.0] * (n - bad)
    upper = sampled_bounds([stratum(10 * n, losses)], 0.05)[1]
    expected = sum(rel_entr([bad / n, 1 - bad / n], [upper, 1 - upper])) * n
    assert expected == pytest.approx(math.log(20))
    flipped = sampled_bounds([stratum(10 * n, 1 - np.array(losses))], 0.05)[0]
    assert flipped == pytest.approx(1 - upper, abs=1e-9)


def test_it_is_the_bound_by_its_definition() -> None:
    losses = [1.0, 0.5, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert sampled_bounds([stratum(99, losses)], 0.05)[1] == pytest.approx(chernoff(losses, 0.05), rel=1e-4)


def test_without_a_loss_it_is_the_binomial_bound() -> None:
    assert sampled_bounds([stratum(4000, [0.0] * 72)], 0.025) == (0.0, pytest.approx(1 - 0.025 ** (1 / 72)))


def test_each_mask_counts_once_whatever_its_chance_to_be_drawn() -> None:
    # 100 of 200 with 3 bad, 20 of 1,000 with 4 bad: 6 and 200 of 1,200. Unweighted it would be 7 of 120.
    strata = [stratum(200, [1.0] * 3 + [0.0] * 97), stratum(1000, [1.0] * 4 + [0.0] * 16)]
    assert sampled_mean(strata) == pytest.approx(206 / 1200)
    lower, upper = sampled_bounds(strata, 0.05)
    assert lower < 206 / 1200 < upper
    # Each answer as one of 120 between 0 and 1, those of the first masks worth 2 / 50 of the others.
    weighted = [2 / 50] * 3 + [0.0] * 97 + [1.0] * 4 + [0.0] * 16
    assert upper == pytest.approx(chernoff(weighted, 0.05) * 120 * 50 / 1200, rel=1e-4)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=5)
)
def test_the_bounds_enclose_the_estimate(shapes: list[tuple[int, int, int]]) -> None:
    strata = [stratum(n + more, [1.0] * min(bad, n) + [0.0] * (n - min(bad, n))) for n, bad, more in shapes]
    lower, upper = sampled_bounds(strata, 0.05)
    estimate = sampled_mean(strata)
    assert estimate is not None
    # Strata that tell too little are left to the worst case, so only the bounds of all can be compared.
    assert 0 <= lower <= upper <= 1
    assert upper >= min(1.0, estimate) - 1e-9 or len(strata) > 1
    assert lower <= estimate + 1e-9 or len(strata) > 1


def test_masks_that_nobody_was_asked_about_may_all_be_bad() -> None:
    known = stratum(900, [0.0] * 100)
    alone = sampled_bounds([known], 0.05)[1]
    assert sampled_bounds([known, stratum(100, [])], 0.05)[1] == pytest.approx(0.9 * alone + 0.1)
    assert sampled_bounds([stratum(100, [])], 0.05) == (0.0, 1.0)
    assert sampled_bounds([], 0.05) == (0.0, 1.0)
    assert sampled_mean([stratum(100, [])]) is None


def test_a_few_masks_that_are_hardly_ever_drawn_spoil_little() -> None:
    """One answer for ten of a thousand masks: at worst these are bad."""
    upper = sampled_bounds([stratum(1000, [0.0] * 100)], 0.05)[1]
    assert sampled_bounds([stratum(1000, [0.0] * 100), stratum(10, [0.0])], 0.05)[1] <= upper + 10 / 1010
    assert sampled_bounds([stratum(1000, [0.0] * 100), stratum(500, [0.0])], 0.05)[1] > 0.3


@pytest.mark.parametrize("shares", [(0.05,), (0.5, 0.02), (0.5, 0.2, 0.1, 0.05, 0.02)])
@pytest.mark.parametrize("scene", [1, 10])
def test_the_bounds_of_a_draw_are_wrong_as_rarely_as_stated(shares: tuple[float, ...], scene: int) -> None:
    """Also where the masks of a scene fail together, and where those that are drawn least fail most."""
    random, draws, wrong = np.random.default_rng(7), 400, np.zeros(2)
    bad = [np.repeat(random.random(1000 // scene) < 0.02 * (n + 1), scene) for n in range(len(shares))]
    truth = float(np.concatenate(bad).mean())
    for _ in range(draws):
        drawn = [ones[random.random(len(ones)) < share] for ones, share in zip(bad, shares, strict=True)]
        lower, upper = sampled_bounds([stratum(1000, ones.astype(float)) for ones in drawn], 0.05)
        wrong += (lower > truth, upper < truth)
    assert (wrong <= draws * 0.05 + 3 * math.sqrt(draws * 0.05 * 0.95)).all(), wrong


@given(st.floats(0, 0.5), st.floats(0.01, 0.9), st.sampled_from([0.1, 0.025]))
def test_so_many_answers_are_enough_and_one_fewer_is_not(mean: float, bound: float, error: float) -> None:
    needed = answers_needed(mean, bound, error)
    assert (needed is None) == (mean >= bound)
    if needed is not None and 1 < needed < 2000:
        assert sampled_bounds([stratum(9999, [mean] * needed)], error)[1] <= bound + 1e-6
        assert sampled_bounds([stratum(9999, [mean] * (needed - 1))], error)[1] >= bound - 1e-6


def test_seventy_two_clean_audits_show_a_twentieth() -> None:
    assert answers_needed(0.0, 0.05, 0.025) == 72  # 0.95 to the 72 is 0.0249
