"""What audits say night by night: each mask counts once, a night is one witness, a skip never helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.confidence.confidence_sequence import p_values_above
from segpipe.review.audit_nights import (
    Accepted,
    Drawn,
    Night,
    all_nights,
    answers_missing,
    kept_over,
    last_kept,
    look_no_better,
    night_bets,
    nights_of,
    recent_nights,
)

FIRST = date(2026, 1, 1)
LIMIT, ERROR = 0.1, 0.05
Cell = tuple[float, int, Sequence[float | None]]  # chance to be drawn, masks, what the drawn ones lose


def night(number: int, *cells: Cell) -> Night:
    day = FIRST + timedelta(number)
    accepted = [Accepted(day, share, masks, float(masks)) for share, masks, _ in cells]
    drawn = [Drawn(day, share, 1.0, loss) for share, _, losses in cells for loss in losses]
    (made,) = nights_of(accepted, drawn)
    return made


def audited(number: int, bad: int, n: int = 20, masks: int = 1000) -> Night:
    return night(number, (0.02, masks, [1.0] * bad + [0.0] * (n - bad)))


def test_a_nights_mean_is_over_its_masks_and_not_over_its_audits() -> None:
    # 3 of 100 audits of 200 masks, 4 of 20 of 1,000: 6 and 200 bad of 1,200, though 7 of 120 audits are.
    mixed = night(0, (0.5, 200, [1.0] * 3 + [0.0] * 97), (0.02, 1000, [1.0] * 4 + [0.0] * 16))
    assert night_bets([mixed])[0] == pytest.approx([206 / 1200])
    window = all_nights([mixed], ERROR)
    assert window is not None
    assert window.estimate == pytest.approx(206 / 1200)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_five_different_audit_shares_give_the_share_of_all_masks(seed: int) -> None:
    """Drawn again and again, on average: the bet of each night and the estimate speak of masks."""
    random, shares = np.random.default_rng(seed), (0.5, 0.2, 0.1, 0.05, 0.02)
    rates = random.random(5) * 0.2
    sizes = random.integers(200, 1000, 5)
    bad = [random.random(size) < rate for size, rate in zip(sizes, rates, strict=True)]
    truth = float(np.concatenate(bad).mean())

    def drawn() -> Night:
        cells = [
            (share, len(ones), ones[random.random(len(ones)) < share].astype(float).tolist())
            for share, ones in zip(shares, bad, strict=True)
        ]
        return night(0, *cells)

    means = [night_bets([drawn()])[0][0] for _ in range(64)]
    spread = float(np.std(means)) / 8
    assert abs(float(np.mean(means)) - truth) < 5 * spread + 1e-9


def test_a_smaller_share_later_changes_no_stake() -> None:
    """1,000 masks a night count as 1,000 whether 500 or 20 of them are audited, so no payoff is unbounded."""
    nights = [night(0, (0.5, 1000, [0.0] * 500)), night(1, (0.02, 1000, [1.0] * 20))]
    losses, weights = night_bets(nights)
    assert losses == [0.0, 1.0]
    assert weights == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_small_night_weighs_less_and_a_backlog_no_more_than_an_ordinary_night() -> None:
    sizes = [100_000, 1000, 1000, 1000, 1000, 100]
    nights = [audited(number, 0, masks=size) for number, size in enumerate(sizes)]
    # Of 100 masks none is drawn on 13 of 100 nights: those on which one is stand for the others.
    smallest = 0.1 / (1 - 0.98**100)
    assert night_bets(nights)[1] == pytest.approx([1, 0.01, 1, 1, 1, smallest], rel=1e-6)
    assert night_bets([])[1] == []


def test_a_night_without_an_answer_bets_nothing() -> None:
    nights = [audited(0, 1), night(1, (0.02, 1000, [])), night(2, (0.02, 1000, [None, None]))]
    losses, weights = night_bets(nights)
    assert (losses, weights) == (pytest.approx([0.05, 0, 0]), [1.0, 0.0, 0.0])


def test_masks_that_could_not_be_drawn_are_left_out() -> None:
    cells = [Accepted(FIRST, 0.0, 500, 500.0), Accepted(FIRST, 0.02, 1000, 1000.0)]
    (found,) = nights_of(cells, [])
    assert found.accepted == (cells[1],)
    assert nights_of(cells[:1], []) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=12, max_size=30))
def test_a_skip_never_helps(verdicts: list[list[bool]]) -> None:
    """Skipping what is bad shows no promise kept that was not shown before."""
    answered = [night(n, (0.02, 1000, [float(bad) for bad in found])) for n, found in enumerate(verdicts)]
    skipped = [
        night(n, (0.02, 1000, [None if bad else 0.0 for bad in found])) for n, found in enumerate(verdicts)
    ]
    with_answers, with_skips = all_nights(answered, ERROR), all_nights(skipped, ERROR)
    assert with_answers is not None
    assert with_skips is not None
    assert with_skips.upper_with_skips == pytest.approx(with_answers.upper)
    assert kept_over(skipped, LIMIT, ERROR) is None or kept_over(answered, LIMIT, ERROR) is not None


def test_sixty_percent_of_the_bad_skipped_shows_nothing_kept() -> None:
    """Of 20 audits a night 3 are bad and 2 of these are skipped: 1 of 18 answered ones looks like half."""
    nights = [night(n, (0.02, 1000, [1.0, None, None] + [0.0] * 17)) for n in range(60)]
    found = all_nights(nights, ERROR)
    assert found is not None
    assert found.estimate == pytest.approx(1 / 18)
    assert found.upper < LIMIT < found.upper_with_skips
    assert kept_over(nights, LIMIT, ERROR) is None


def test_all_skipped_says_nothing() -> None:
    nights = [night(n, (0.02, 1000, [None] * 20)) for n in range(30)]
    found = all_nights(nights, ERROR)
    assert found is not None
    assert (found.estimate, found.lower, found.upper, found.upper_with_skips) == (None, 0.0, 1.0, 1.0)
    assert kept_over(nights, LIMIT, ERROR) is None
    assert answers_missing(nights, LIMIT, ERROR) is None, "no number of audits like these"


def test_without_nights() -> None:
    assert all_nights([], ERROR) is recent_nights([], LIMIT, ERROR) is kept_over([], LIMIT, ERROR) is None
    assert last_kept([], LIMIT, ERROR) is None
    assert answers_missing([], LIMIT, ERROR) == 36  # 0.9 to the 36 is below 0.05 / 2


def test_kept_is_said_of_the_last_nights_that_suffice() -> None:
    """221 audits would show a tenth where a twentieth is bad: ln(1 / 0.025) / 0.0167."""
    nights = [audited(n, 1) for n in range(100)]
    found = kept_over(nights, LIMIT, ERROR)
    assert found is not None
    assert (found.nights, found.audited, found.until) == (12, 240, "2026-04-10")
    assert found.upper_with_skips <= LIMIT


def test_after_a_rise_it_is_not_shown_kept_for_long_and_the_date_stays() -> None:
    """100 nights of a fortieth, then more than is promised: the good nights no longer speak for the new."""
    good = [audited(n, n % 2) for n in range(100)]
    bad = [audited(100 + n, 4) for n in range(100)]
    shown = [kept_over([*good, *bad[:n]], LIMIT, ERROR) is not None for n in range(len(bad) + 1)]
    assert shown[0]
    assert not any(shown[8:]), "from the night on when the last nights look worse than promised"
    last = last_kept([*good, *bad], LIMIT, ERROR)
    assert last is not None
    assert last.until == (FIRST + timedelta(99 + shown.count(True) - 1)).isoformat()
    recent = recent_nights([*good, *bad], LIMIT, ERROR)
    assert recent is not None
    assert recent.lower > last.upper_with_skips, "it got worse, beyond doubt"


def test_so_many_more_answers_show_it_kept() -> None:
    nights = [audited(0, 1)]
    more = answers_missing(nights, LIMIT, ERROR)
    assert more is not None
    enough = [*nights, *(audited(n, 1) for n in range(1, 1 + -(-more // 20)))]
    assert kept_over(enough, LIMIT, ERROR) is not None
    assert kept_over(enough[:-1], LIMIT, ERROR) is None
    assert answers_missing([audited(n, 2) for n in range(9)], LIMIT, ERROR) is None


def test_no_number_of_answers_is_told_where_they_do_not_count_alike() -> None:
    """Two chances to be drawn, then masks that weigh by their groups; and enough by the count."""
    alike = [night(n, (0.5, 40, [0.0] * 10)) for n in range(2)]
    assert answers_missing(alike, LIMIT, ERROR) == 16
    unlike = [night(0, (0.5, 40, [0.0] * 10)), night(1, (0.1, 400, [0.0] * 10))]
    assert answers_missing(unlike, LIMIT, ERROR) is None
    assert not look_no_better(unlike, LIMIT, ERROR)
    by_group = [
        replace(one, accepted=tuple(replace(cell, mass=cell.mass / 7) for cell in one.accepted))
        for one in alike
    ]
    assert answers_missing(by_group, LIMIT, ERROR) is None
    assert answers_missing([*alike, *alike], LIMIT, ERROR) is None
    assert look_no_better([audited(n, 2) for n in range(9)], LIMIT, ERROR)


def test_nights_that_differ_do_not_break_a_promise_that_is_kept() -> None:
    """Night shares spread by as much as is promised: a bet on each audit would call half of them broken."""
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(100):
        bad = random.binomial(20, np.minimum(random.exponential(0.1, 100), 1))
        losses, weights = night_bets([audited(n, int(found)) for n, found in enumerate(bad)])
        alarms += bool(p_values_above(losses, LIMIT, weights)[-1] <= ERROR)
    assert alarms <= 5 + 3 * (100 * 0.05 * 0.95) ** 0.5
