"""Evidence that may be looked at every night: exact where it can be worked out, simulated where not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import beta

from segpipe.confidence.sequential import Interval, confidence_sequence, evidence_of_a_break

LOSSES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_without_losses_nothing_is_known() -> None:
    assert confidence_sequence([], 0.9) == Interval(0.0, 1.0)
    assert evidence_of_a_break([], 0.1).size == 0


@pytest.mark.parametrize("n", [1, 10, 200])
def test_the_interval_of_flawless_masks_has_a_closed_form(n: int) -> None:
    found = confidence_sequence(np.zeros(n), 0.9)
    # B(1/2, 1/2 + n) / B(1/2, 1/2) / (1 - m)^n = 10
    ratio = beta(0.5, 0.5 + n) / beta(0.5, 0.5)
    assert found.low == 0
    assert found.high == pytest.approx(1 - (ratio / 10) ** (1 / n), rel=1e-6)
    assert confidence_sequence(np.ones(n), 0.9).low == pytest.approx(1 - found.high, rel=1e-6)


@given(LOSSES, st.floats(0.5, 0.99))
def test_the_interval_holds_the_mean_and_grows_with_the_confidence(
    losses: list[float], confidence: float
) -> None:
    narrow, wide = confidence_sequence(losses, confidence), confidence_sequence(losses, 0.995)
    assert wide.low <= narrow.low <= np.mean(losses) + 1e-9
    assert np.mean(losses) - 1e-9 <= narrow.high <= wide.high


def test_the_interval_holds_at_all_times_at_once() -> None:
    rng, missed, n_sequences = np.random.default_rng(0), 0, 300
    for _ in range(n_sequences):
        losses = rng.random(300) < 0.1
        looks = (confidence_sequence(losses[:n], 0.9) for n in range(5, 301, 5))
        missed += any(not look.low <= 0.1 <= look.high for look in looks)
    assert missed <= 0.1 * n_sequences


def test_the_evidence_of_one_bad_mask_by_hand() -> None:
    # Half of the capital bets now, on 15%, 20% and 40% bad masks in place of 10%; half waits.
    (after,) = evidence_of_a_break([1.0], 0.1)
    assert after == pytest.approx(0.5 * (1.5 + 2 + 4) / 3 + 0.5)
    (good,) = evidence_of_a_break([0.0], 0.1)
    assert good == pytest.approx(0.5 * (0.85 + 0.8 + 0.6) / 0.9 / 3 + 0.5)


@pytest.mark.parametrize(("bad", "expected"), [(0.1, 1.0), (0.05, None)])
def test_the_evidence_is_a_fair_bet_when_the_promise_is_just_kept(bad: float, expected: float | None) -> None:
    n = 9
    mean = 0.0
    for losses in itertools.product([0, 1], repeat=n):
        probability = math.prod(bad if loss else 1 - bad for loss in losses)
        mean += probability * evidence_of_a_break(losses, 0.1)[-1]
    if expected is None:
        assert mean < 1
    else:
        assert mean == pytest.approx(expected)


def test_losses_between_0_and_1_are_no_better_a_bet() -> None:
    # Half the time 0.05, half the time 0.15: the mean is the promised 0.1.
    outcomes = itertools.product([0.05, 0.15], repeat=8)
    assert np.mean([evidence_of_a_break(losses, 0.1)[-1] for losses in outcomes]) <= 1


def test_a_promise_that_is_just_kept_is_rarely_found_broken() -> None:
    rng, n_years = np.random.default_rng(1), 300
    broken = sum(evidence_of_a_break(rng.random(2000) < 0.05, 0.05).max() >= 20 for _ in range(n_years))
    assert broken <= 0.05 * n_years


def test_a_fault_after_a_long_good_time_is_found_soon_too() -> None:
    rng = np.random.default_rng(2)

    def delay(n_good: int) -> float:
        found = []
        for _ in range(20):
            losses = np.concatenate([rng.random(n_good) < 0.03, rng.random(1500) < 0.15])
            over = np.flatnonzero(evidence_of_a_break(losses, 0.05) >= 20)
            found.append(over[0] - n_good)
        return float(np.median(found))

    assert 0 < delay(0) < 150
    assert delay(5000) < 300, "bets from the first loss on would first have to win back what they lost"


@given(LOSSES, LOSSES)
def test_what_comes_later_does_not_change_what_was_known(first: list[float], later: list[float]) -> None:
    whole = evidence_of_a_break([*first, *later], 0.1)
    assert whole[: len(first)] == pytest.approx(evidence_of_a_break(first, 0.1))
