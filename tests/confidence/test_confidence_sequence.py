from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.confidence.confidence_sequence import losses_until_below, mean_interval, p_values_above

STAKES = (0.9, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
some_losses = st.lists(st.floats(0, 1), min_size=1, max_size=30)
bounds = st.floats(0.02, 0.9)


def gamblers(losses: list[float], bound: float) -> list[float]:
    """The p-values by the recursion of an e-detector, one loss and one gambler after the other."""
    at_stake = [0.0] * len(STAKES)
    kept, richest, p_values = 1.0, 1.0, []
    for number, loss in enumerate(losses, start=1):
        left = 1 / (1 + math.log(1 + number))
        at_stake = [
            (capital + kept - left) * (1 + stake * (loss / bound - 1))
            for capital, stake in zip(at_stake, STAKES, strict=True)
        ]
        kept = left
        richest = max(richest, kept + sum(at_stake) / len(STAKES))
        p_values.append(1 / richest)
    return p_values


@given(some_losses, bounds)
def test_p_values_are_those_of_gamblers_who_restart_at_every_loss(losses: list[float], bound: float) -> None:
    assert p_values_above(losses, bound) == pytest.approx(gamblers(losses, bound), rel=1e-9)


def test_one_bad_mask_by_hand() -> None:
    # Before the first loss 1 - 1 / (1 + ln 2) is staked; the mean stake is 0.309375 * 6 / 6, a bad mask at a
    # bound of 0.1 pays 9 times the stake.
    staked = 1 - 1 / (1 + math.log(2))
    mean_stake = (0.9 + 0.5 + 0.25 + 0.125 + 0.0625 + 0.03125) / 6
    assert p_values_above([1.0], 0.1)[0] == pytest.approx(1 / (1 - staked + staked * (1 + 9 * mean_stake)))


@given(some_losses, some_losses, bounds)
def test_what_follows_never_changes_what_was_said(
    losses: list[float], later: list[float], bound: float
) -> None:
    before, after = p_values_above(losses, bound), p_values_above([*losses, *later], bound)
    assert after[: len(losses)] == pytest.approx(before, rel=1e-9)
    assert (np.diff(after) <= 0).all()


@given(some_losses, st.floats(0, 1))
def test_an_interval_only_narrows(losses: list[float], later: float) -> None:
    (low, high), (new_low, new_high) = mean_interval(losses, 0.9), mean_interval([*losses, later], 0.9)
    assert 0 <= low <= new_low + 1e-9
    assert new_high <= max(high, new_low) + 1e-9
    assert new_low <= new_high <= 1


@given(some_losses, bounds)
def test_the_lower_end_is_above_a_bound_just_when_the_p_value_says_so(
    losses: list[float], bound: float
) -> None:
    p_value = p_values_above(losses, bound)[-1]
    if abs(p_value - 0.05) > 1e-6:
        assert (mean_interval(losses, 0.9)[0] > bound) == (p_value < 0.05)


def test_without_losses_nothing_is_known() -> None:
    assert mean_interval([], 0.9) == (0.0, 1.0)
    assert p_values_above([], 0.1).tolist() == []


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_whole_sequence_covers_the_mean_as_often_as_stated(share: float) -> None:
    random, n_sequences, missed = np.random.default_rng(3), 400, 0
    for _ in range(n_sequences):
        low, high = mean_interval(random.random(300) < share, 0.9)  # of the last: it has only narrowed
        missed += not low <= share <= high
    assert missed <= 0.1 * n_sequences + 3 * math.sqrt(0.09 * n_sequences)


def test_a_fault_after_many_good_nights_is_noticed_within_few_audits() -> None:
    random = np.random.default_rng(5)
    losses = np.concatenate([random.random(4000) < 0.05, random.random(400) < 0.3])
    p_values = p_values_above(losses, 0.1)
    assert p_values[3999] > 0.05
    assert 4000 < np.argmax(p_values <= 0.05) < 4200


@pytest.mark.parametrize("losses", [[], [0.0] * 20, [0.0] * 30 + [1.0]])
def test_so_many_more_losses_are_enough_and_one_fewer_are_not(losses: list[float]) -> None:
    more = losses_until_below(losses, 0.1, 0.9)
    assert more is not None
    repeated = np.resize(losses or [0.0], more)
    assert mean_interval([*losses, *repeated], 0.9)[1] <= 0.1 + 1e-9
    assert mean_interval([*losses, *repeated[:-1]], 0.9)[1] > 0.1


def test_no_number_of_bad_losses_helps() -> None:
    assert losses_until_below([0.0, 1.0], 0.1, 0.9) is None
