"""Promises about classes, against counts made one threshold at a time and against a simulated truth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_policy import make_policy
from scipy.stats import binom

from segpipe.confidence.certify import BadFraction, ClassPixels, ClassTarget, MeanLoss
from segpipe.confidence.class_test import most_wrong
from segpipe.confidence.policy import ClassesOnly, ClassGuard, Policy, from_json, sealed, to_json
from segpipe.confidence.promise import promise
from segpipe.errors import PolicyError

MISS = ClassTarget("miss", "crack", 0, 0.05, 1)
FALSE_ALARM = ClassTarget("false_alarm", "crack", 0, 0.05, 1)


def policy_for(
    scores: Any,
    true: Any,
    shown: Any,
    targets: Any = (MISS,),
    masks: BadFraction | MeanLoss | None = None,
    **options: Any,
) -> Policy:
    pixels = ClassPixels(np.atleast_2d(np.asarray(true)).T, np.atleast_2d(np.asarray(shown)).T)
    return make_policy(
        scores,
        options.pop("ious", np.ones(len(scores))),
        "0123456789ab",
        masks,
        options.pop("confidence", 0.95),
        "f" * 64,
        "2026-01-02T03:04:05+00:00",
        class_targets=targets,
        class_pixels=pixels,
        **options,
    )


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_as_many_may_be_wrong_as_the_binomial_tail_allows(confidence: float, share: float) -> None:
    for n in range(0, 200, 7):
        tail = np.cumsum([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)])
        assert most_wrong(n, share, confidence) == int((tail <= 1 - confidence).sum()) - 1


@pytest.mark.parametrize(("n_positive", "needed"), [(58, 1), (59, 0), (0, 59), (20, 39)])
def test_59_images_with_the_class_are_needed_however_many_there_are_without(
    n_positive: int, needed: int
) -> None:
    scores = np.arange(n_positive + 500.0)
    true = np.arange(len(scores)) < n_positive
    policy = policy_for(scores, true, true)
    (promised,) = policy.class_promises
    assert (promised.n_images, promised.labelled_images_needed) == (n_positive, needed)
    assert policy.threshold == (0.0 if needed == 0 else None)
    assert isinstance(policy.promised, ClassesOnly)
    assert from_json(to_json(policy)) == policy


def test_a_miss_that_goes_to_review_is_none() -> None:
    # Of 100 positives the 40 of the lowest scores are missed: 1 of 100 is the most at 5% / 95%.
    scores, missed = np.arange(100.0), np.arange(100) < 40
    policy = policy_for(scores, np.ones(100), ~missed)
    assert binom.cdf(1, 100, 0.05) <= 0.05 < binom.cdf(2, 100, 0.05)
    assert policy.threshold == 39.0
    assert (policy.accepted, policy.class_promises[0].found) == (61, 1)
    assert policy.p_value == policy.class_promises[0].p_value == pytest.approx(binom.cdf(1, 100, 0.05))
    assert promise(policy) == (
        "of the images that have 'crack' at most 5% are accepted with a mask without it, with 95% "
        "confidence (accepted 61 of 100 calibration images, of 100 calibration images with 'crack' 1 "
        "accepted without it)"
    )


def test_an_object_counts_from_so_many_pixels_on() -> None:
    true, shown = np.full(100, 20), np.tile([19, 20], 50)
    small = policy_for(np.arange(100.0), true, shown, [replace(MISS, min_object_px=20)])
    assert small.class_promises[0].n_images == 100
    assert small.threshold == 97.0  # one may be missed, which is that at 98, and the next is at 96
    larger = policy_for(np.arange(100.0), true, shown, [replace(MISS, min_object_px=21)])
    assert larger.class_promises[0].n_images == 0
    assert larger.class_promises[0].labelled_images_needed == 59
    false = policy_for(np.arange(100.0), shown, true, [replace(FALSE_ALARM, min_object_px=20)])
    assert false.class_promises[0].n_images == 50  # those of 19 pixels have none of it


def test_an_image_of_each_group_that_has_the_class_is_drawn_among_those_that_have_it() -> None:
    group = [f"{number // 10:03d}" for number in range(1000)]
    true = np.arange(1000) % 10 == 3  # one frame of each video
    policy = policy_for(np.arange(1000.0), true, true, group=group)
    assert (policy.n_calibration, policy.class_promises[0].n_images) == (100, 100)
    assert policy.threshold is not None
    half = policy_for(np.arange(1000.0), true & (np.arange(1000) < 500), true, group=group)
    assert half.class_promises[0].n_images == 50
    assert "9 more groups of labelled images with 'crack' are needed (there are 50)" in promise(half)


def test_what_no_threshold_accepts_is_no_miss_but_counts_among_those_with_the_class() -> None:
    scores = np.where(np.arange(100) < 90, np.nan, np.arange(100.0))
    policy = policy_for(scores, np.ones(100), np.arange(100) >= 90)
    assert (policy.threshold, policy.accepted, policy.held_back) == (90.0, 10, 90)
    assert (policy.class_promises[0].n_images, policy.class_promises[0].found) == (100, 0)
    guarded = policy_for(
        np.arange(100.0),
        np.ones(100),
        np.arange(100) < 50,
        guards=[ClassGuard("crack", 0, 0.5)],
        class_confidences=np.where(np.arange(100) < 50, 0.9, 0.1)[:, None],
    )
    assert (guarded.threshold, guarded.accepted, guarded.class_promises[0].found) == (0.0, 50, 0)


def test_one_threshold_keeps_the_promise_about_masks_and_that_about_a_class() -> None:
    scores = np.arange(400.0)
    ious = np.where(scores >= 100, 0.9, 0.3)
    has = np.arange(400) % 4 == 0  # 100 of them
    masks = BadFraction(0.6, 0.1)
    alone = policy_for(scores, has, has, masks=masks, ious=ious)
    assert alone.threshold is not None
    assert alone.threshold < 100
    missed = has & (scores < 200)
    both = policy_for(scores, has, has & ~missed, masks=masks, ious=ious)
    assert both.threshold is not None
    assert 196 <= both.threshold <= 204  # above the second missed one, on the grid of the masks' coverages
    assert both.class_promises[0].found in (0, 1)
    assert both.labelled_images_needed == 0
    assert from_json(to_json(both)) == both


def test_a_class_that_is_not_proven_is_what_is_asked_for() -> None:
    scores, has = np.arange(400.0), np.arange(400) < 30
    policy = policy_for(scores, has, has, [MISS, FALSE_ALARM], BadFraction(0.6, 0.1))
    assert policy.threshold is None
    assert promise(policy) == (
        "nothing is accepted: 400 calibration images cannot prove that at most 10% of accepted masks have "
        "IoU below 0.60, and of the images that have 'crack' at most 5% are accepted with a mask without it, "
        "and of the images without 'crack' at most 5% are accepted with a mask that shows it, with 95% "
        "confidence; 29 more labelled images with 'crack' are needed (there are 30)"
    )
    assert from_json(to_json(policy)) == policy


def test_promises_that_no_threshold_keeps_together() -> None:
    # The mask promise needs 45 accepted, the class only bears the 20 surest.
    scores = np.arange(100.0)
    policy = policy_for(scores, np.ones(100), scores >= 80, masks=BadFraction(0.6, 0.1))
    assert policy.threshold is None
    assert promise(policy).endswith(
        "each can be kept by itself, but no threshold keeps all: improve the model, or promise less"
    )
    assert from_json(to_json(policy)) == policy


def test_a_model_that_misses_it_with_its_surest_masks_is_told_so() -> None:
    policy = policy_for(np.arange(100.0), np.ones(100), np.zeros(100))
    (promised,) = policy.class_promises
    assert policy.threshold == 99.0  # one of a hundred may be missed
    assert promised.found == 1
    ties = policy_for(np.zeros(100), np.ones(100), np.zeros(100))
    assert (ties.threshold, ties.class_promises[0].labelled_images_needed) == (None, None)
    assert promise(ties).endswith(
        "the surest masks of all wrongly do not show 'crack': improve the model, or allow a larger share"
    )
    assert from_json(to_json(ties)) == ties


def test_a_class_that_every_image_has_leaves_none_for_a_false_alarm() -> None:
    policy = policy_for(np.arange(100.0), np.ones(100), np.ones(100), [FALSE_ALARM])
    assert policy.threshold is None
    assert promise(policy).endswith("59 more labelled images without 'crack' are needed (there are 0)")


def test_nothing_wanted_is_refused() -> None:
    with pytest.raises(PolicyError, match="nothing is to be promised"):
        policy_for(np.arange(9.0), np.ones(9), np.ones(9), [])
    with pytest.raises(PolicyError, match=r"share of 'crack' 1\.5 is outside"):
        policy_for(np.arange(9.0), np.ones(9), np.ones(9), [replace(MISS, max_share=1.5)])


CERTIFIED = policy_for(np.arange(200.0), np.arange(200) % 2, np.arange(200) % 2, [MISS, FALSE_ALARM])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"found": 1}, "p_value .* of 1 of 100 is"),
        ({"p_value": 0.01}, "is not the largest|p_value 0.01 of 0 of 100"),
        ({"n_images": 58, "p_value": float(binom.cdf(0, 58, 0.05))}, "above 1 - confidence"),
        ({"n_images": 201}, "n_images 201 is more than n_calibration 200"),
        ({"found": None}, "found None"),
        ({"found": 101}, "found 101 of 100"),
        ({"labelled_images_needed": 3}, "3 more needed"),
        ({"max_share": 0.01}, "p_value"),
        ({"kind": "false_alarm"}, "the same twice"),
        ({"min_object_px": 0}, "damaged at class_promises"),
        ({"kind": "something"}, "damaged at class_promises"),
    ],
)
def test_a_forged_promise_about_a_class_is_refused(change: dict[str, Any], said: str) -> None:
    first, second = CERTIFIED.class_promises
    forged = replace(CERTIFIED, class_promises=(replace(first, **change), second))
    largest = max(one.p_value for one in forged.class_promises)
    with pytest.raises(PolicyError, match=said):
        from_json(to_json(sealed(replace(forged, p_value=largest))))


def test_a_policy_that_promises_nothing_is_refused() -> None:
    nothing = replace(
        CERTIFIED, class_promises=(), p_value=1.0, threshold=None, accepted=0, labelled_images_needed=None
    )
    with pytest.raises(PolicyError, match="promise nothing"):
        from_json(to_json(sealed(nothing)))
    with pytest.raises(PolicyError, match="is not the largest of its classes'"):
        from_json(to_json(sealed(replace(CERTIFIED, p_value=0.001))))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_threshold_is_the_loosest_that_keeps_all_promises(data: st.DataObject) -> None:
    """Against each candidate counted by itself."""
    random = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    n, share = data.draw(st.integers(1, 150)), data.draw(st.sampled_from([0.05, 0.2, 0.5]))
    scores = random.choice([np.nan, *random.normal(size=n)], size=n)  # with ties, and some that are none
    if not np.isfinite(scores).any():
        scores[0] = 0.0
    true, shown = random.random((2, n)) < data.draw(st.sampled_from([0.2, 0.5, 0.9]))
    shown = np.where(random.random(n) < data.draw(st.sampled_from([0.05, 0.5, 1])), shown, true)
    targets = [replace(MISS, max_share=share), replace(FALSE_ALARM, max_share=share)]
    policy = policy_for(scores, true, shown, targets, confidence=0.9)

    def keeps(threshold: float) -> bool:
        accepted = np.nan_to_num(scores, nan=-np.inf) >= threshold
        counts = [
            ((true & ~shown & accepted).sum(), true.sum()),
            ((~true & shown & accepted).sum(), (~true).sum()),
        ]
        return all(binom.cdf(wrong, positive, share) <= 1 - 0.9 for wrong, positive in counts)

    kept = [score for score in scores[np.isfinite(scores)] if keeps(score)]
    assert policy.threshold == min(kept, default=None)
    assert from_json(to_json(policy)) == policy


def test_a_broken_promise_is_certified_as_rarely_as_allowed() -> None:
    """Both promises at once, of scores that say nothing: at most delta of the draws break either."""
    random, delta, draws, broken = np.random.default_rng(0), 0.1, 400, 0
    for _ in range(draws):
        true = random.random(300) < 0.4
        wrong = random.random(300) < np.where(true, 0.4, 0.1)
        # Of the images with the class 0.4 are missed: accepting more than a quarter of all is too much.
        targets = [replace(MISS, max_share=0.1), replace(FALSE_ALARM, max_share=0.1)]
        policy = policy_for(random.random(300), true, true ^ wrong, targets, confidence=1 - delta)
        broken += policy.threshold is not None and policy.threshold < 0.75
    assert broken <= binom.ppf(0.999, draws, delta)
    assert broken > 0.3 * delta * draws  # it is not merely timid
