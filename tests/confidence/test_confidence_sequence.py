from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.confidence.confidence_sequence import lower_end, p_values_above

STAKES = (0.95, 0.75, 0.5, 0.25, 0.125, 0.0625)
some_losses = st.lists(st.floats(0, 1), min_size=1, max_size=30)
bounds = st.floats(0.02, 0.9)


def gamblers(losses: list[float], bound: float, weights: list[float]) -> list[float]:
    """The p-values by the recursion of an e-detector, one night and one gambler after the other."""
    at_stake = [0.0] * len(STAKES)
    kept, richest, p_values = 1.0, 1.0, []
    for number, (loss, weight) in enumerate(zip(losses, weights, strict=True), start=1):
        left = 1 / (1 + math.log(1 + number))
        at_stake = [
            (capital + kept - left) * (1 + stake * weight * (loss / bound - 1))
            for capital, stake in zip(at_stake, STAKES, strict=True)
        ]
        kept = left
        richest = max(richest, kept + sum(at_stake) / len(STAKES))
        p_values.append(1 / richest)
    return p_values


@given(some_losses, bounds, st.integers(0, 2**32 - 1))
def test_p_values_are_those_of_gamblers_who_restart_on_every_night(
    losses: list[float], bound: float, seed: int
) -> None:
    weights = np.random.default_rng(seed).random(len(losses)).tolist()
    assert p_values_above(losses, bound, weights) == pytest.approx(gamblers(losses, bound, weights), rel=1e-9)
    assert p_values_above(losses, bound) == pytest.approx(gamblers(losses, bound, [1.0] * len(losses)))


def test_one_bad_night_by_hand() -> None:
    # Before the first night 1 - 1 / (1 + ln 2) is staked; a night of bad masks alone pays 9 times the
    # stake at a bound of 0.1.
    staked = 1 - 1 / (1 + math.log(2))
    mean_stake = (0.95 + 0.75 + 0.5 + 0.25 + 0.125 + 0.0625) / 6
    assert p_values_above([1.0], 0.1)[0] == pytest.approx(1 / (1 - staked + staked * (1 + 9 * mean_stake)))


def test_of_nights_counted_in_two_ways_each_has_half_of_the_capital() -> None:
    """By the second way nothing is bet, so that its half stays what it was."""
    (alone,) = p_values_above([1.0], 0.1)
    assert p_values_above([[1.0], [1.0]], 0.1)[0] == pytest.approx(alone)
    (half,) = p_values_above([[1.0], [1.0]], 0.1, [[1.0], [0.0]])
    assert half == pytest.approx(1 / ((1 / alone + 1) / 2))


@given(some_losses, bounds)
def test_one_night_alone_never_refutes_more_than_its_chance(losses: list[float], bound: float) -> None:
    """A night on which everything is bad may come once in ten nights where a tenth is promised."""
    assert p_values_above(losses[:1], bound)[0] >= bound


@given(some_losses, some_losses, bounds)
def test_what_follows_never_changes_what_was_said(
    losses: list[float], later: list[float], bound: float
) -> None:
    before, after = p_values_above(losses, bound), p_values_above([*losses, *later], bound)
    assert after[: len(losses)] == pytest.approx(before, rel=1e-9)
    assert (np.diff(after) <= 0).all()
    assert lower_end([*losses, *later], 0.05) >= lower_end(losses, 0.05) - 1e-9


@given(some_losses, bounds)
def test_the_lower_end_is_above_a_bound_just_when_the_p_value_says_so(
    losses: list[float], bound: float
) -> None:
    p_value = p_values_above(losses, bound)[-1]
    if abs(p_value - 0.05) > 1e-6:
        assert (lower_end(losses, 0.05) > bound) == (p_value < 0.05)


def test_without_nights_nothing_is_known() -> None:
    assert lower_end([], 0.05) == 0.0
    assert p_values_above([], 0.1).tolist() == []
    assert p_values_above([1.0, 1.0], 0.1, [0.0, 0.0]).tolist() == pytest.approx([1, 1]), (
        "where nothing is bet"
    )


@pytest.mark.parametrize("deviation", [0.0, 0.1])
def test_a_promise_that_is_just_kept_is_called_broken_as_rarely_as_stated(deviation: float) -> None:
    """For 300 nights, also where their shares of bad masks differ by as much as what is promised."""
    random, years, alarms = np.random.default_rng(3), 300, 0
    for _ in range(years):
        shares = np.minimum(random.gamma(1, 0.1, 300), 1) if deviation else np.full(300, 0.1)
        alarms += bool(p_values_above(random.binomial(20, shares) / 20, 0.1)[-1] <= 0.05)
    assert alarms <= 0.05 * years + 3 * math.sqrt(0.05 * 0.95 * years)


def test_a_fault_after_many_good_nights_is_noticed_within_few_nights() -> None:
    random = np.random.default_rng(5)
    losses = random.binomial(20, np.repeat([0.05, 0.3], [200, 40])) / 20
    p_values = p_values_above(losses, 0.1)
    assert p_values[199] > 0.05
    assert 200 < np.argmax(p_values <= 0.05) < 220
