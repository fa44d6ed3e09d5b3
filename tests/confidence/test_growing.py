"""The certificate that grows: against a plain implementation, by simulation, and as a policy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from plain_policy import make_policy
from scipy.stats import binomtest

from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.confidence.growing import (
    COVERAGES,
    Draws,
    Ratio,
    bad_ratio,
    evidence_at,
    limit_with_draft,
    loosest_proven,
)
from segpipe.confidence.grown_policy import grown_policy, grown_threshold
from segpipe.confidence.policy import ClassGuard, Policy, from_json, sealed, to_json
from segpipe.confidence.promise import growth_in_words, promise
from segpipe.errors import PolicyError

LIMIT, CONFIDENCE, SHARE = 0.1, 0.9, 0.02
CREATED = "2026-11-22T00:00:00+00:00"


def drawn(scores: object, bad: object, shares: object = None, scratch: object = None) -> Draws:
    scores, bad = np.asarray(scores, float), np.asarray(bad, bool)
    none = np.zeros(len(bad), bool)
    shares = np.full(len(bad), SHARE) if shares is None else np.asarray(shares, float)
    return Draws(scores, bad, shares, none if scratch is None else np.asarray(scratch, bool), none)


def highest_capital(draws: Draws, threshold: float, limit: float) -> float:
    """By the formula, one mask at a time: six gamblers who start with a sixth each."""
    purses, highest = [1 / 6] * 6, 1.0
    for score, bad, share in zip(draws.scores, draws.bad, draws.shares, strict=True):
        if score >= threshold:
            for place, bet in enumerate((0.9, 0.6, 0.4, 0.25, 0.12, 0.06)):
                purses[place] *= 1 + bet * (SHARE / share) * (limit - bad) / (1 - limit)
            highest = max(highest, sum(purses))
    return highest


@st.composite
def any_draws(draw: st.DrawFn) -> Draws:
    n = draw(st.integers(0, 120))
    scores = draw(arrays.arrays(float, n, elements=st.sampled_from([-math.inf, 0.1, 0.3, 0.5, 0.7, 0.9])))
    bad = draw(arrays.arrays(bool, n, elements=st.sampled_from([False] * 9 + [True])))
    return drawn(scores, bad, draw(arrays.arrays(float, n, elements=st.sampled_from([SHARE, 0.04, 1.0]))))


@given(any_draws(), st.sampled_from([0.05, 0.1, 0.3]))
def test_the_capital_is_that_of_the_formula_worked_out_mask_by_mask(draws: Draws, limit: float) -> None:
    for threshold in (0.9, 0.5, 0.0):
        found = evidence_at(draws, threshold, limit, CONFIDENCE, SHARE)
        assert found.log_capital == pytest.approx(
            math.log(highest_capital(draws, threshold, limit)), abs=1e-9
        )


@given(any_draws())
def test_the_loosest_threshold_is_used_that_is_proven_with_all_stricter_ones(draws: Draws) -> None:
    grid, expected = (0.9, 0.7, 0.5, 0.3, 0.1), None
    for threshold in grid:
        if highest_capital(draws, threshold, LIMIT) < 2 / (1 - CONFIDENCE):
            break
        expected = threshold
    assert loosest_proven(draws, grid, LIMIT, CONFIDENCE, SHARE) == expected


def test_so_many_good_masks_prove_the_strictest_threshold_and_one_less_does_not() -> None:
    """The mean of (1 + l / 9)^n over the six bets reaches 20 at n = 47: worked out with a calculator."""
    capital = [np.mean((1 + np.array([0.9, 0.6, 0.4, 0.25, 0.12, 0.06]) / 9) ** n) for n in (46, 47)]
    assert capital[0] < 20 <= capital[1]
    proven = [loosest_proven(drawn([1] * n, [0] * n), (1.0,), LIMIT, CONFIDENCE, SHARE) for n in (46, 47)]
    assert proven == [None, 1.0]


@given(any_draws(), any_draws())
def test_more_draws_only_ever_loosen(first: Draws, more: Draws) -> None:
    both = Draws(*(np.concatenate([getattr(one, name) for one in (first, more)]) for name in vars(first)))
    grid = (0.9, 0.7, 0.5, 0.3, 0.1)
    before, after = (loosest_proven(one, grid, LIMIT, CONFIDENCE, SHARE) for one in (first, both))
    assert (math.inf if after is None else after) <= (math.inf if before is None else before)


@given(any_draws(), st.randoms())
def test_the_order_of_masks_that_are_alike_or_lie_below_does_not_matter(draws: Draws, random: object) -> None:
    """Masks that no threshold accepts may stand anywhere; neighbours with one answer may change places."""
    threshold = 0.5
    counting = np.flatnonzero(draws.scores >= threshold)
    others = np.flatnonzero(draws.scores < threshold)
    moved = np.concatenate([others, counting])
    for start in range(len(others), len(moved) - 1):
        one, next_one = moved[start], moved[start + 1]
        if (draws.bad[one], draws.shares[one]) == (draws.bad[next_one], draws.shares[next_one]):
            moved[start : start + 2] = next_one, one
    again = Draws(*(getattr(draws, name)[moved] for name in vars(draws)))
    before, after = (evidence_at(one, threshold, LIMIT, CONFIDENCE, SHARE) for one in (draws, again))
    assert replace(after, log_capital=0.0) == replace(before, log_capital=0.0)
    assert after.log_capital == pytest.approx(before.log_capital, abs=1e-9)


def test_a_mask_that_stands_for_half_as_many_stakes_half() -> None:
    alone = evidence_at(drawn([1], [0], [2 * SHARE]), 1.0, LIMIT, CONFIDENCE, SHARE).log_capital
    assert alone == pytest.approx(math.log(np.mean(1 + np.array([0.9, 0.6, 0.4, 0.25, 0.12, 0.06]) / 18)))


def test_a_mask_drawn_with_less_than_the_least_share_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"share 0\.01, and the policy was to grow by no less than 0\.02"):
        evidence_at(drawn([1], [0], [0.01]), 1.0, LIMIT, CONFIDENCE, SHARE)


def test_a_threshold_that_is_false_is_ever_proven_in_no_more_than_half_of_delta() -> None:
    """12% bad at a limit of 10%, 400 draws looked at after each; of 1,500 repetitions 5% would be 75."""
    rng, proven = np.random.default_rng(5), 0
    for _ in range(1500):
        draws = drawn(np.ones(400), rng.random(400) < 0.1 + 1e-9)
        proven += loosest_proven(draws, (1.0,), LIMIT, CONFIDENCE, SHARE) is not None
    assert binomtest(proven, 1500, (1 - CONFIDENCE) / 2, alternative="greater").pvalue > 0.001
    assert proven > 10  # it is no empty test: the bound is nearly reached at the limit itself


def test_unequal_shares_do_not_let_well_drawn_good_nights_hide_bad_ones() -> None:
    """Half of the masks come on nights of no bad ones, drawn at 0.5; the others are bad in 22% and drawn at
    0.02: 11% of all masks are bad. Unweighted the draws would show 0.8%."""
    rng, proven, naive = np.random.default_rng(6), 0, 0
    for _ in range(80):
        good_night = rng.random(40_000) < 0.5
        share = np.where(good_night, 0.5, SHARE)
        chosen = rng.random(40_000) < share
        bad = (rng.random(40_000) < 0.22) & ~good_night
        shares, found = share[chosen], bad[chosen]
        proven += loosest_proven(drawn(found * 0.0, found, shares), (0.0,), LIMIT, 0.9, SHARE) is not None
        naive += loosest_proven(drawn(found * 0.0, found), (0.0,), LIMIT, 0.9, SHARE) is not None
    assert naive == 80
    assert binomtest(proven, 80, 0.05, alternative="greater").pvalue > 0.001


# --- the reviewers' bias ------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(1, 200), st.integers(0, 30), st.integers(1, 200))
def test_the_interval_is_the_exact_binomial_one_of_those_from_scratch_among_the_bad(
    bad_scratch: int, scratch: int, bad_draft: int, draft: int
) -> None:
    found = bad_ratio(bad_scratch, scratch, bad_draft, draft, CONFIDENCE)
    if not bad_scratch + bad_draft:
        assert found == Ratio(None, 0.0, math.inf)
        return
    exact = binomtest(bad_scratch, bad_scratch + bad_draft).proportion_ci(CONFIDENCE, "exact")
    bounds = [share / (1 - share) * draft / scratch if share < 1 else math.inf for share in exact]
    assert (found.lower, found.upper) == pytest.approx(bounds, rel=1e-6)
    if bad_draft:
        assert found.estimate == pytest.approx((bad_scratch / scratch) / (bad_draft / draft))


def test_the_limit_shrinks_by_the_most_that_the_ratio_may_be_and_only_when_it_is_surely_above_one() -> None:
    assert limit_with_draft(0.1, Ratio(2.5, 0.9, 6.0)) == 0.1
    assert limit_with_draft(0.1, Ratio(2.5, 1.1, 5.0)) == pytest.approx(0.02)
    assert limit_with_draft(0.1, Ratio(0.4, 0.2, 0.9)) == 0.1  # never in the reviewers' favour
    assert limit_with_draft(0.1, Ratio(math.inf, 1.1, math.inf)) == 0


def test_reviewers_who_mend_half_of_what_is_wrong_prove_nothing_once_that_is_known() -> None:
    """Truly 12% are bad, with the draft people see 4%: 1,000 drafts and 250 from scratch tell."""
    scratch = np.arange(1250) % 5 == 0
    bad = np.where(scratch, np.arange(1250) // 5 % 8 == 0, np.arange(1250) % 26 == 1)
    draws = drawn(np.ones(1250), bad, scratch=scratch)
    blind = drawn(np.ones(1250), bad)
    assert loosest_proven(blind, (1.0,), LIMIT, CONFIDENCE, SHARE) == 1.0
    found = evidence_at(draws, 1.0, LIMIT, CONFIDENCE, SHARE)
    assert (found.answered_from_scratch, found.bad_from_scratch) == (250, 32)
    assert found.ratio == pytest.approx((32 / 250) / (found.bad_with_draft / 1000))
    assert loosest_proven(draws, (1.0,), LIMIT, CONFIDENCE, SHARE) is None


def test_a_skipped_mask_is_bad_for_the_certificate_and_says_nothing_about_the_reviewers() -> None:
    draws = replace(drawn([1, 1, 1], [0, 1, 1]), skipped=np.array([False, True, False]))
    found = evidence_at(draws, 1.0, LIMIT, CONFIDENCE, SHARE)
    assert (found.accepted, found.bad) == (3, 2)
    assert (found.answered_with_draft, found.bad_with_draft) == (2, 1)


def test_a_skipped_mask_is_one_bad_mask_also_where_the_ratio_is_four() -> None:
    """10 of 100 bad from scratch, 10 of 400 with the draft: each of these stands for four, and for no more
    than `most` at 90%, at a limit of 0.1.

    So a good one with the draft pays 0.1 / (most - 0.1), a bad one costs all that is staked, and a skipped
    one, of which at most itself is bad, (0.1 - 1) / (most - 0.1) of it. From scratch it costs all.
    """
    share = binomtest(10, 20).proportion_ci(CONFIDENCE, "exact").high
    most = 4 * share / (1 - share)
    bets = np.array([0.9, 0.6, 0.4, 0.25, 0.12, 0.06])
    answers = (1 + bets * 0.1 / (most - 0.1)) ** 390 * (1 + bets / 9) ** 90
    for from_scratch, paid in ((False, -0.9 / (most - 0.1)), (True, -1)):
        scratch = [from_scratch] + [False] * 390 + [True] * 100 + [False] * 10
        bad = [True] + [False] * 480 + [True] * 20
        draws = replace(drawn(np.ones(501), bad, scratch=scratch), skipped=np.arange(501) == 0)
        found = evidence_at(draws, 1.0, LIMIT, CONFIDENCE, SHARE)
        assert found.ratio == pytest.approx(4)
        assert found.log_capital == pytest.approx(math.log(np.mean((1 + bets * paid) * answers)))


# --- as a policy --------------------------------------------------------------------------------------------


def calibrated(n: int = 400, confidence: float = CONFIDENCE, seed: int = 0, **options: object) -> Policy:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n)
    ious = np.where(scores + 0.75 * rng.normal(size=n) < -1.05, 0.2, 0.9)
    given = {"draw_share": SHARE} | options
    return make_policy(
        scores, ious, "m" * 12, BadFraction(0.5, LIMIT), confidence, "f" * 64, CREATED, **given
    )


def many_draws(n: int = 3000) -> Draws:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=n)
    return drawn(scores, scores + 0.75 * rng.normal(size=n) < -1.05, scratch=np.arange(n) % 5 == 0)


def test_a_policy_that_may_grow_tests_its_calibration_images_at_half_the_error() -> None:
    """72 of 72 at 5% and 95%, where 59 do without growth."""
    target = BadFraction(0.5, 0.05)

    def made(n: int, **options: object) -> Policy:
        scores = np.linspace(0, 1, n)
        return make_policy(scores, np.ones(n), "m" * 12, target, 0.95, "f" * 64, CREATED, **options)

    assert [made(n).threshold is None for n in (58, 59)] == [True, False]
    assert [made(n, draw_share=SHARE).threshold is None for n in (71, 72)] == [True, False]
    growing = made(72, draw_share=SHARE)
    assert growing.confidence == 0.95
    assert "72 accepted calibration images" in str(growth_in_words(growing))
    assert "instead of 59" in str(growth_in_words(growing))
    assert growth_in_words(made(59)) is None


def test_the_thresholds_to_try_are_quantiles_of_what_the_guards_let_pass() -> None:
    scores = np.arange(100.0)
    confident = np.where(scores >= 90, 0.1, 0.9)[:, None]
    options = {"guards": [ClassGuard("road", 0, 0.5)], "class_confidences": confident, "draw_share": SHARE}
    policy = make_policy(
        scores, np.ones(100), "m" * 12, BadFraction(0.5, LIMIT), CONFIDENCE, "f" * 64, CREATED, **options
    )
    assert len(COVERAGES) == 21
    assert policy.growth is not None
    expected = [89 - (step - 1) for step in range(20, 91, 4)]  # the 20th best, 24th, ... of 90 that can pass
    assert policy.growth.thresholds == tuple(expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": MeanLoss(0.3)}, "only a promise about the share of bad masks can grow"),
        ({"group": ["a", "a", "b"]}, "counts each group of images once cannot grow"),
        ({"draw_share": 0.0}, r"draw share 0.0 is outside \(0, 1\]"),
    ],
)
def test_what_cannot_grow_is_said(changes: dict[str, object], said: str) -> None:
    given = {"target": BadFraction(0.5, LIMIT), "draw_share": SHARE} | changes
    target = given.pop("target")
    with pytest.raises(PolicyError, match=said):
        make_policy([1, 2, 3], [1, 1, 1], "m" * 12, target, CONFIDENCE, "f" * 64, CREATED, **given)


def test_a_grown_policy_accepts_more_names_its_root_and_loads_again() -> None:
    root, draws = calibrated(), many_draws()
    grown = grown_policy(root, draws, 3, CREATED)
    assert root.threshold is not None
    assert grown.threshold == grown_threshold(root, draws) < root.threshold
    assert grown.threshold in grown.growth.thresholds
    assert (grown.family, root.family) == (root.policy_id, root.policy_id)
    assert (grown.growth.number, grown.certified_threshold) == (3, root.threshold)
    assert from_json(to_json(grown)) == grown
    assert from_json(to_json(root)) == root
    assert f"{grown.growth.evidence.bad} bad of {grown.growth.evidence.accepted} accepted" in promise(grown)


def test_calibrations_own_threshold_stays_where_it_is_the_looser_one() -> None:
    root = calibrated()
    grown = grown_policy(root, drawn([], []), 1, CREATED)
    assert (grown.threshold, grown.growth.evidence.log_capital) == (root.threshold, 0)
    assert from_json(to_json(grown)) == grown


def test_what_calibration_could_not_prove_grows_from_nothing() -> None:
    root = calibrated(30)
    assert root.threshold is None
    assert promise(root).endswith("; or reviews of drawn masks prove it in time")
    assert "reviews" not in promise(calibrated(30, draw_share=None))
    assert grown_policy(root, drawn([], []), 1, CREATED).threshold is None
    grown = grown_policy(root, many_draws(), 1, CREATED)
    assert grown.threshold is not None
    assert "calibration images" not in promise(grown)
    assert from_json(to_json(grown)) == grown


def test_a_policy_without_growth_has_neither_field_nor_another_id() -> None:
    assert "growth" not in json.loads(to_json(calibrated(draw_share=None)))


EVIDENCE = (
    ("bad", 10**6, "bad of"),
    ("log_capital", 500.0, "log_capital 500 is too large"),
    ("log_capital", 2.0, "log_capital 2 proves nothing"),
    ("ratio", 7.0, "ratio 7.0"),
    ("bad_with_draft", 10**6, "more bad than answered"),
    ("answered_with_draft", 10**6, "more answered than accepted"),
    ("first_threshold", -9.0, "threshold"),
)


@pytest.mark.parametrize(("field", "value", "said"), EVIDENCE)
def test_evidence_that_cannot_be_is_found(field: str, value: object, said: str) -> None:
    grown = grown_policy(calibrated(), many_draws(), 1, CREATED)
    evidence = replace(grown.growth.evidence, **{field: value})
    forged = sealed(replace(grown, growth=replace(grown.growth, evidence=evidence)))
    with pytest.raises(PolicyError, match=said):
        from_json(to_json(forged))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thresholds": (0.1, 0.2)}, "do not fall"),
        ({"number": 0}, "growth number 0"),
        ({"root": None}, "growth number 1"),
        ({"thresholds": (9.0, 8.0)}, "neither calibration's nor one that growth was to try"),
        ({"draw_share": 0.0}, "damaged at growth.draw_share"),
    ],
)
def test_growth_that_cannot_be_is_found(changes: dict[str, object], said: str) -> None:
    grown = grown_policy(calibrated(), many_draws(), 1, CREATED)
    with pytest.raises(PolicyError, match=said):
        from_json(to_json(sealed(replace(grown, growth=replace(grown.growth, **changes)))))


@settings(max_examples=30, deadline=None)
@given(any_draws(), st.integers(0, 5))
def test_every_policy_that_grows_adds_up(draws: Draws, seed: int) -> None:
    grown = grown_policy(calibrated(120, seed=seed), draws, 1, CREATED)
    assert from_json(to_json(grown)) == grown
