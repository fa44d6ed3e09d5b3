"""Certificates per group of images: each as if its group had been calibrated alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_policy import make_policy

from segpipe.confidence.certify import BadFraction, ClassPixels, ClassTarget, MeanLoss
from segpipe.confidence.drift import detect_drift
from segpipe.confidence.group_drift import (
    detect_group_drift,
    group_drift_metadata,
    group_drift_of_metadata,
)
from segpipe.confidence.policy import BadFractionPromise, Policy, for_image, from_json, sealed, to_json
from segpipe.confidence.promise import promise
from segpipe.errors import PolicyError

PER = r"cam\d+"


def policy_for(scores: Any, ious: Any, target: Any = BadFraction(0.6, 0.1), **options: Any) -> Policy:  # noqa: B008
    return make_policy(
        scores, ious, "0123456789ab", target, 0.9, "f" * 64, "2026-01-02T03:04:05+00:00", **options
    )


# 100 images of one camera are good from a score of 20 on, 100 of another always, 10 of a third; 5 have none.
NAMES = ["cam1"] * 100 + ["cam2"] * 100 + ["cam3"] * 10 + [None] * 5
SCORES = np.concatenate([np.arange(100.0), np.arange(100.0), np.arange(10.0), np.arange(5.0)])
IOUS = np.where((np.array(NAMES) == "cam1") & (SCORES < 20), 0.3, 0.9)
POLICY = policy_for(SCORES, IOUS, per=PER, per_group=NAMES)


def test_each_group_has_the_certificate_it_would_have_alone() -> None:
    assert [one.group for one in POLICY.certificates] == ["cam1", "cam2", "cam3"]
    for one in POLICY.certificates:
        rows = np.array(NAMES) == one.group
        alone = policy_for(SCORES[rows], IOUS[rows])
        own = POLICY.of_group(one)
        assert (own.threshold, own.accepted, own.p_value) == (alone.threshold, alone.accepted, alone.p_value)
        assert (own.promised, own.n_images, own.n_calibration) == (alone.promised, rows.sum(), rows.sum())
        assert own.score_quantiles == alone.score_quantiles
    assert POLICY.certificates[2].labelled_images_needed == 12


def test_nothing_holds_for_all_images_alike() -> None:
    assert (POLICY.threshold, POLICY.accepted, POLICY.p_value, POLICY.n_images) == (None, 0, 1, 215)
    assert POLICY.promised == BadFractionPromise(0.6, 0.1, None)
    assert POLICY.accepts_some
    assert not policy_for(SCORES[200:], IOUS[200:], per=PER, per_group=NAMES[200:]).accepts_some


def test_an_image_has_the_certificate_of_its_group() -> None:
    thresholds = {
        name: for_image(POLICY, f"s3://lake/{name}/1.jpg") for name in ("cam1", "cam2", "cam3", "cam4")
    }
    assert [own and own.threshold for own in thresholds.values()] == [
        POLICY.certificates[0].threshold,
        0.0,
        None,
        None,
    ]
    assert thresholds["cam4"] is None
    assert for_image(POLICY, "s3://lake/yard/1.jpg") is None
    plain = policy_for(SCORES, IOUS)
    assert for_image(plain, "s3://lake/yard/1.jpg") is plain


def test_the_promise_names_each_group_and_whose_it_is() -> None:
    cam1 = POLICY.certificates[0]
    assert isinstance(cam1.promised, BadFractionPromise)
    assert promise(POLICY) == (
        "at most 10% of accepted masks have IoU below 0.60, with 90% confidence, of each of 2 groups by "
        "itself, so that of many certificates some may be wrong: "
        f"cam1 (accepted {cam1.accepted} of 100 calibration images, {cam1.promised.bad} bad), "
        "cam2 (accepted 100 of 100 calibration images, 0 bad); without a certificate, so all to review: "
        "cam3 (about 12 more labelled images are needed); every other group goes to review"
    )
    none = policy_for(SCORES[200:], IOUS[200:], per=PER, per_group=NAMES[200:])
    assert promise(none) == (
        "nothing is accepted: of no group is it proven that at most 10% of accepted masks have IoU below "
        "0.60, with 90% confidence: cam3 (about 12 more labelled images are needed)"
    )


def test_it_is_kept_and_read_as_it_is() -> None:
    assert from_json(to_json(POLICY)) == POLICY


@pytest.mark.parametrize(
    ("change", "of_first", "said"),
    [
        ({}, {"threshold": 0.0}, "certificate of cam1: more of those scores"),
        ({}, {"p_value": 0.001}, "certificate of cam1: p_value 0.001"),
        (
            {},
            {"promised": BadFractionPromise(0.6, 0.5, 0)},
            "certificate of cam1: it promises something else",
        ),
        ({}, {"group": "cam2"}, "name a group twice"),
        ({}, {"n_images": 110}, "more images than there are"),
        ({}, {"n_calibration": 90}, "certificate of cam1: so many of those scores"),
        ({}, {"score_quantiles": ()}, "certificate of cam1: score_quantiles"),
        ({"per": None}, {}, "with per alone"),
        ({"per": "("}, {}, "per is no regular expression"),
        (
            {"threshold": 0.0, "accepted": 215, "labelled_images_needed": 0},
            {},
            "without a threshold for all|p_value",
        ),
    ],
)
def test_a_forged_certificate_is_refused(change: dict[str, Any], of_first: dict[str, Any], said: str) -> None:
    first, *others = POLICY.certificates
    forged = replace(POLICY, certificates=(replace(first, **of_first), *others), **change)
    with pytest.raises(PolicyError, match=said):
        from_json(to_json(sealed(forged)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_policy_that_calibration_makes_is_refused(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 120))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    scores = random.choice([np.nan, 0.5, *random.normal(size=n)], size=n)
    scores[0] = 0.0
    names = [None if one == 3 else f"cam{one}" for one in random.integers(0, 4, n)]
    if not any(names):
        names[0] = "cam0"
    grouped = [f"{number // 3}" for number in range(n)] if data.draw(st.booleans()) else None
    finite = np.isfinite(scores)
    if not all(finite[np.flatnonzero(np.array(names) == name)].any() for name in set(names) - {None}):
        scores = np.where(finite, scores, 0.25)
    if grouped is not None:
        scores = np.where(np.isfinite(scores), scores, 0.25)
    policy = policy_for(
        scores,
        np.clip(random.random(n) + data.draw(st.sampled_from([0, 0.5, 0.9])), 0, 1),
        data.draw(st.sampled_from([BadFraction(0.6, 0.3), MeanLoss(0.5), None])),
        per=PER,
        per_group=names,
        group=grouped,
        class_targets=[ClassTarget("miss", "crack", 0, 0.3, 1)],
        class_pixels=ClassPixels(random.integers(0, 2, (n, 1)), random.integers(0, 2, (n, 1))),
    )
    assert from_json(to_json(policy)) == policy
    assert {one.group for one in policy.certificates} == set(names) - {None}


def test_a_group_without_a_finite_score_has_no_certificate() -> None:
    scores = np.where(np.array(NAMES) == "cam2", np.nan, SCORES)
    assert [one.group for one in policy_for(scores, IOUS, per=PER, per_group=NAMES).certificates] == [
        "cam1",
        "cam3",
    ]


def test_drift_is_tested_for_each_group_against_its_own_scores() -> None:
    random = np.random.default_rng(0)
    scores = [(f"s3://b/cam1/{n}", value) for n, value in enumerate(random.uniform(0, 100, 60))]
    scores += [(f"s3://b/cam2/{n}", value) for n, value in enumerate(random.uniform(0, 20, 60))]
    scores += [(f"s3://b/cam9/{n}", -100.0) for n in range(60)]
    found = detect_group_drift(scores, POLICY, 0.001)
    assert list(found) == ["cam1", "cam2"]  # in cam3 nothing is accepted, and nobody knows cam9
    assert [drift.alarm for drift in found.values()] == [False, True]
    of_cam2 = [score for uri, score in scores if "cam2" in uri]
    assert found["cam2"] == detect_drift(of_cam2, POLICY.of_group(POLICY.certificates[1]), 0.001 / 2)
    kept = {name.encode(): value.encode() for name, value in group_drift_metadata(found).items()}
    assert group_drift_of_metadata(kept) == found
    assert group_drift_metadata({}) == {}
    assert group_drift_of_metadata({}) == {}


def test_damaged_verdicts_are_an_error() -> None:
    with pytest.raises(ValueError, match="dict"):
        group_drift_of_metadata({b"segpipe.drift_by_group": b"7"})
    assert math.isclose(POLICY.confidence, 0.9)
