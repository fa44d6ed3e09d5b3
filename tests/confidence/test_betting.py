from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.confidence.betting import betting_p_value, losses_needed

some_losses = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def gamblers_p_value(losses: list[float], bound: float, confidence: float) -> float:
    """The same test one loss after the other, as the paper's equations (15) and (26) state it."""
    n, capital, richest = len(losses), 1.0, 1.0
    total, squares, variance = 0.5, 0.25, 0.25
    for number, loss in enumerate(losses, start=1):
        bet = min(math.sqrt(2 * math.log(1 / (1 - confidence)) / (n * variance)), 0.99 / (1 - bound))
        capital *= 1 + bet * (bound - loss)
        richest = max(richest, capital)
        total += loss
        squares += (loss - total / (number + 1)) ** 2
        variance = squares / (number + 1)
    return 1 / richest


@given(some_losses, st.floats(0.02, 0.9), st.floats(0.5, 0.99))
def test_p_value_is_that_of_a_gambler_who_bets_loss_by_loss(losses, bound, confidence):
    expected = gamblers_p_value(losses, bound, confidence)
    assert betting_p_value(losses, bound, confidence) == pytest.approx(expected, rel=1e-9)


def test_p_value_of_two_hand_worked_losses():
    # both bets are 0.99 / 0.9 = 1.1, the plug-ins being larger: capital 1.11, then 1.11 * (1 - 0.44)
    assert betting_p_value([0.0, 0.5], 0.1, 0.9) == pytest.approx(1 / 1.11)


def test_losses_at_the_bound_or_above_prove_nothing():
    assert betting_p_value([0.3] * 50, 0.3, 0.9) == 1
    assert betting_p_value([0.9] * 50, 0.3, 0.9) == 1
    assert betting_p_value([], 0.3, 0.9) == 1


def test_losses_of_zero_pass_nearly_as_soon_as_images_without_a_bad_one():
    # the binomial test needs 22 of them; all bets are 1.1 but the first, sqrt(2 ln 10 / (23 * 0.25))
    assert losses_needed([0.0], 0.1, 0.9) == 23
    first_bet = math.sqrt(2 * math.log(10) / (23 * 0.25))
    assert betting_p_value([0.0] * 23, 0.1, 0.9) == pytest.approx(1 / ((1 + 0.1 * first_bet) * 1.11**22))


@given(some_losses, st.floats(0.05, 0.9))
def test_losses_needed_pass_and_one_fewer_do_not(losses, bound):
    needed = losses_needed(losses, bound, 0.9)
    if needed is None:
        return
    assert betting_p_value(np.resize(losses, needed), bound, 0.9) <= 0.1
    assert needed == 1 or betting_p_value(np.resize(losses, needed - 1), bound, 0.9) > 0.1


def test_no_number_of_losses_helps_above_the_bound():
    assert losses_needed([0.2, 0.4], 0.3, 0.9) is None
    assert losses_needed([0.2999], 0.3, 0.9) is None


@pytest.mark.parametrize("spread", [0.5, 3.0, 50.0])
@pytest.mark.parametrize("bound", [0.1, 0.4])
def test_a_true_mean_at_the_bound_passes_no_more_often_than_allowed(bound, spread):
    draws, delta = 1000, 0.1
    losses = np.random.default_rng(3).beta(bound * spread, (1 - bound) * spread, (draws, 150))
    passed = sum(betting_p_value(of_draw, bound, 1 - delta) <= delta for of_draw in losses)
    assert passed / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


def test_it_needs_far_fewer_losses_than_hoeffding():
    losses = np.random.default_rng(3).beta(1, 19, 100)  # mean 0.05
    hoeffding = math.exp(-2 * 100 * (0.1 - losses.mean()) ** 2)
    assert hoeffding > 0.5
    assert betting_p_value(losses, 0.1, 0.9) < 0.05
