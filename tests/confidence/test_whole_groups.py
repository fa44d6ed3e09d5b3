"""Certificates from all images of each group, against the formulas written out and a simulated truth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_policy import make_policy
from scipy.stats import binom, norm

from segpipe.confidence.certificates import CalibrationImages, Wanted, certificate_of
from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.confidence.guarantee import one_per_group, one_per_group_by_size
from segpipe.confidence.policy import Policy, from_json, sealed, to_json
from segpipe.confidence.promise import not_audited, promise
from segpipe.confidence.whole_groups import are_enough, certify_whole_groups, first_coverage
from segpipe.errors import PolicyError

ALPHA = DELTA = 0.1


def policy_for(scores: Any, ious: Any, group: Any, target: Any, **options: Any) -> Policy:
    return make_policy(
        scores,
        ious,
        "0123456789ab",
        target,
        1 - DELTA,
        "f" * 64,
        "2026-01-02T03:04:05+00:00",
        group=list(group),
        **options,
    )


def capital(payoffs: list[float], limit: float, confidence: float) -> float:
    """The largest capital of the bets of notes' Advance B, one group after the other."""
    n, largest, now = len(payoffs), 1.0, 1.0
    total, squares = 0.5, 0.25
    for seen, payoff in enumerate(payoffs, 1):
        variance = squares / seen
        bet = min(math.sqrt(2 * math.log(1 / (1 - confidence)) / (n * variance)), 0.99 / (1 - limit))
        now *= 1 + bet * payoff
        largest = max(largest, now)
        loss = limit - payoff
        total += loss
        squares += (loss - total / (seen + 1)) ** 2
    return largest


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_threshold_is_the_last_of_those_whose_bets_won_enough(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 9999)))
    about = data.draw(st.sampled_from(["groups", "masks"]))
    n_groups = data.draw(st.integers(20, 60))
    group = np.repeat([f"g{n:03d}" for n in range(n_groups)], random.integers(1, 6, n_groups))
    scores = random.normal(size=len(group))
    limit = data.draw(st.sampled_from([0.2, 0.4]))
    losses = np.where(random.random(len(group)) < data.draw(st.sampled_from([0.02, 0.2])), random.random(), 0)
    thresholds = np.quantile(scores, [0.0, 0.2, 0.4])
    found = certify_whole_groups(scores, losses, group, about, tuple(thresholds), limit, 0.9)

    names = sorted(set(group.tolist()))
    order = np.random.default_rng(0).permutation(n_groups)
    largest = max(int((group == name).sum()) for name in names)

    def p_value(threshold: float, lost: Any) -> float:
        payoffs = []
        for name in (names[place] for place in order):
            rows = np.flatnonzero(group == name)
            won = sum(limit - lost[row] for row in rows if scores[row] >= threshold)
            payoffs.append(won / (len(rows) if about == "groups" else largest))
        return 1 / capital(payoffs, limit, 0.9)

    expected: tuple[float | None, float] = (None, 1.0)
    for threshold in sorted(thresholds, reverse=True):
        if p_value(threshold, np.zeros(len(group))) > 0.1:
            continue
        if (p := p_value(threshold, losses)) > 0.1:
            break
        expected = (threshold, p)
    assert found.threshold == expected[0]
    assert found.p_value == pytest.approx(expected[1], rel=1e-9)


def test_a_random_image_is_drawn_where_groups_are_kept_by_their_size() -> None:
    """The images drawn are of each group in proportion to its images; the largest group is always there."""
    sizes = np.random.default_rng(1).choice([1, 2, 5, 10], 4000)
    group = np.repeat([f"{n:04d}" for n in range(4000)], sizes)
    rows = one_per_group_by_size(group.tolist())
    assert set(rows) <= set(one_per_group(group.tolist()))
    kept = np.isin([f"{n:04d}" for n in range(4000)], group[rows])
    assert kept[sizes == 10].all()
    for size in (1, 2, 5):
        n, found = (sizes == size).sum(), kept[sizes == size].sum()
        assert binom.ppf(1e-4, n, size / 10) <= found <= binom.ppf(1 - 1e-4, n, size / 10)
    assert len(one_per_group_by_size(["a", "b", "c"])) == 3


def test_few_groups_are_drawn_from_and_many_used_whole() -> None:
    twenties = lambda n: np.full(n, 20)  # noqa: E731
    assert not are_enough(twenties(60), "groups", 0.1, 0.9)
    assert are_enough(twenties(100), "groups", 0.1, 0.9)
    assert not are_enough(np.ones(1000, int), "groups", 0.1, 0.9)
    assert not are_enough(twenties(200), "groups", 0.05, 0.95)
    assert are_enough(twenties(280), "groups", 0.05, 0.95)
    unequal = np.array([2, 4, 6, 100] * 25)
    assert are_enough(unequal, "groups", 0.1, 0.9)
    assert not are_enough(unequal, "masks", 0.1, 0.9)
    assert first_coverage(5, 1.0, 0.1, 0.9) is None


GROUP = np.repeat([f"{n:03d}" for n in range(120)], 10)
SCORES = np.tile(np.arange(10.0), 120) + np.repeat(np.arange(120) / 200, 10)
GOOD = np.where(SCORES < 2, 0.3, 0.9)
WHOLE = policy_for(SCORES, GOOD, GROUP, BadFraction(0.6, 0.1), group_by=r"^\d+")
LOSSES = policy_for(SCORES, GOOD, GROUP, MeanLoss(0.3), promise_about="masks")


def test_what_it_rests_on_is_counted_in_images_and_said() -> None:
    assert WHOLE.whole_groups == 120
    assert (WHOLE.n_calibration, WHOLE.n_images, WHOLE.promises_about) == (120, 1200, "groups")
    assert (WHOLE.group_by, WHOLE.largest_group) == (r"^\d+", None)
    assert WHOLE.threshold is not None
    accepted = WHOLE.threshold <= SCORES
    bad = int((GOOD[accepted] < 0.6).sum())
    assert (WHOLE.accepted, getattr(WHOLE.promised, "bad", None)) == (accepted.sum(), bad)
    assert promise(WHOLE) == (
        "at most 10% of accepted masks have IoU below 0.60, with 90% confidence, each group of images "
        rf"(by '^\d+') counting once (accepted {accepted.sum()} of 1200 calibration images "
        f"in 120 groups, {bad} bad)"
    )
    assert "each mask counting once, of groups of at most 10 images (accepted" in promise(LOSSES)
    for policy in (WHOLE, LOSSES):
        assert from_json(to_json(policy)) == policy


def test_without_a_promise_it_says_how_many_groups_are_needed() -> None:
    ious = np.where(np.arange(1200) % 12 == 0, 0.3, 0.9)  # a twelfth bad, whatever the score
    policy = policy_for(SCORES, ious, GROUP, BadFraction(0.6, 0.1))
    assert policy.threshold is None
    assert policy.labelled_images_needed
    said = promise(policy)
    assert said.startswith("nothing is accepted: 1200 calibration images in 120 groups cannot prove that")
    assert said.endswith(f"about {policy.labelled_images_needed} more groups of labelled images are needed")
    assert from_json(to_json(policy)) == policy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p_value": 1e-300}, "too small for"),
        ({"p_value": 0.2}, "above 1 - confidence"),
        ({"accepted": 1201}, "of n_images 1200"),
        ({"whole_groups": 601}, "whole_groups 601 of n_images 1200"),
        ({"whole_groups": 100}, "in whole_groups 100"),
        ({"accepted": 0}, "with a threshold accepted 0"),
        ({"promises_about": None}, "whole_groups 120"),
        ({"whole_groups": None}, "is more than n_calibration"),
    ],
)
def test_a_forged_one_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        from_json(to_json(sealed(replace(WHOLE, **change))))


def unequal_groups(n_groups: int, random: np.random.Generator) -> tuple[Any, Any, Any]:
    """Scores, whether bad, group: of 2 to 20 frames each, the larger the worse, which no score knows."""
    sizes = np.where(random.random(n_groups) < 0.2, 20, 2)
    member = np.repeat(np.arange(n_groups), sizes)
    scores, noise = np.sqrt(0.5) * random.normal(size=(2, n_groups))[:, member] + np.sqrt(
        0.5
    ) * random.normal(size=(2, len(member)))
    quality = 0.8 * scores + 0.6 * noise - np.where(sizes == 20, 0.8, 0)[member]
    return scores, quality < norm.ppf(0.1), member.astype(str)


def true_bad_share(threshold: float) -> float:
    """Of the accepted masks, in the population: a fifth of the groups has ten times the frames."""
    scores = np.linspace(-6, 6, 4001)
    above = norm.pdf(scores) * (scores >= threshold)
    bad = [norm.cdf((norm.ppf(0.1) + shift - 0.8 * scores) / 0.6) for shift in (0, 0.8)]
    weights = np.array([0.8 * 2, 0.2 * 20])
    share = [float((above * one).sum() / above.sum()) for one in bad]
    return float(weights @ share / weights.sum())


@pytest.mark.parametrize("n_groups", [150, 400])  # drawn from, and used whole
def test_a_promise_about_a_random_mask_holds_where_groups_are_unequal(n_groups: int) -> None:
    random, draws = np.random.default_rng(3), 100
    broken: dict[Literal["groups", "masks"], int] = {"groups": 0, "masks": 0}
    certified, whole = 0, set()
    for _ in range(draws):
        scores, bad, group = unequal_groups(n_groups, random)
        images = CalibrationImages(scores, scores, np.where(bad, 0.3, 0.9), group, None)
        for about in broken:
            wanted = Wanted(BadFraction(0.6, ALPHA), (), 1 - DELTA, about, None)
            found = certificate_of("", images, wanted)
            broken[about] += found.threshold is not None and true_bad_share(found.threshold) > ALPHA
            if about == "masks":
                certified += found.threshold is not None
                whole.add(found.whole_groups is not None)
    assert broken["masks"] <= binom.ppf(0.999, draws, DELTA)
    assert broken["groups"] > 0.4 * draws  # which promises something else
    assert certified > 0.1 * draws
    assert whole == {n_groups == 400}


def test_a_promise_about_the_groups_of_a_table_is_said_not_to_be_audited() -> None:
    assert list(not_audited(WHOLE)) == []
    (said,) = not_audited(replace(WHOLE, group_by=None))
    assert "groups.csv" in said
