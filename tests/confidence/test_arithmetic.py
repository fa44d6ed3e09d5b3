"""A policy whose numbers cannot be is refused, in one line; none that calibration makes is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_policy import make_policy
from scipy.stats import binom

from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.confidence.guarantee import one_per_group
from segpipe.confidence.policy import ClassGuard, Policy, from_json, sealed, to_json
from segpipe.errors import PolicyError

MODEL = "0123456789ab"
BAD, LOSS = BadFraction(0.6, 0.1), MeanLoss(0.3)


def calibrated(scores: Any, ious: Any, target: BadFraction | MeanLoss = BAD, **options: Any) -> Policy:
    return make_policy(scores, ious, MODEL, target, 0.9, "f" * 64, "2026-01-02T03:04:05+00:00", **options)


SCORES = np.arange(200.0)
COUNTED = calibrated(SCORES, np.where(SCORES >= 100, 0.9, 0.3))  # 100 good ones, and bad ones
AVERAGED = calibrated(SCORES, np.full(200, 0.8), LOSS)
GUARDED = calibrated(
    SCORES,
    np.full(200, 0.9),
    guards=[ClassGuard("person", 0, 0.5)],
    class_confidences=np.where(np.arange(200) % 4 == 0, 0.2, 0.8)[:, None],  # 50 of them are held back
    candidate_thresholds=[100.0],
)
NOTHING = calibrated(SCORES[:9], np.full(9, 0.8))
REVERSED = tuple(reversed(COUNTED.score_quantiles))
LEVEL = (COUNTED.display_scores[0],) * len(COUNTED.display_scores)


@pytest.mark.parametrize(
    ("policy", "change", "promised", "said"),
    [
        # Three of three images bad, everything accepted, nearly sure.
        (
            COUNTED,
            {"threshold": -1e9, "accepted": 3, "n_calibration": 3, "p_value": 0.0, "confidence": 0.9999},
            {"bad": 3},
            "p_value 0 of 3 bad of 3 is 1",
        ),
        (COUNTED, {"p_value": COUNTED.p_value / 2}, {}, "p_value"),
        (COUNTED, {"confidence": 0.999}, {}, "above 1 - confidence"),
        (COUNTED, {}, {"bad": COUNTED.promised.bad - 1}, "p_value"),
        (COUNTED, {}, {"bad": COUNTED.accepted + 1}, "bad"),
        (COUNTED, {}, {"bad": None}, "bad None"),
        (COUNTED, {}, {"max_bad_fraction": 0.5}, "p_value"),
        (COUNTED, {"threshold": 1e9}, {}, "threshold 1e\\+09"),
        (COUNTED, {"threshold": COUNTED.threshold + 3}, {}, "so many of those scores"),
        (COUNTED, {"threshold": None}, {}, "labelled_images_needed"),
        (COUNTED, {"threshold": None, "labelled_images_needed": 5}, {}, "without a threshold"),
        # 106 of the 200 scores are at least 94; a lower threshold accepts more of them.
        (COUNTED, {"threshold": COUNTED.threshold - 5}, {}, "more of those scores are at least threshold"),
        (COUNTED, {"threshold": -1e9}, {}, "more of those scores are at least threshold -1e\\+09"),
        (COUNTED, {"threshold": -1e9, "held_back": None}, {}, "more of those scores"),
        (COUNTED, {"threshold": -1e9, "held_back": 96}, {}, "are more than n_calibration"),
        (AVERAGED, {"threshold": -1e9, "accepted": 150}, {}, "more of those scores"),
        (GUARDED, {"threshold": -1e9}, {}, "more of those scores"),
        # All 200 accepted, none of them below 0.8: yet the map shows those below 100 as of IoU 0.3.
        (
            COUNTED,
            {"threshold": 0.0, "accepted": 200, "p_value": float(binom.cdf(0, 200, 0.1))},
            {"bad": 0, "min_iou": 0.8},
            r"of accepted 200 the mean IoU shown is at most 0\.60\d*, and 0\.8 was found",
        ),
        (AVERAGED, {}, {"mean_loss": 0.1}, r"shown is at most 0\.8, and 0\.9 was found"),
        (COUNTED, {"accepted": 201}, {}, "accepted 201 is more than n_calibration 200"),
        (COUNTED, {"n_calibration": 0}, {}, "n_calibration 0"),
        (COUNTED, {"n_images": 199}, {}, "n_images 199"),
        (COUNTED, {"n_calibration": 2**53 + 1, "n_images": 2**53 + 1}, {}, "damaged at n_calibration"),
        (COUNTED, {"score_quantiles": REVERSED}, {}, "score_quantiles"),
        (COUNTED, {"score_quantiles": ()}, {}, "score_quantiles"),
        (COUNTED, {"score_quantiles": COUNTED.score_quantiles[1:]}, {}, "101"),
        (COUNTED, {"display_scores": LEVEL}, {}, "display_scores do not increase"),
        (COUNTED, {"display_values": COUNTED.display_values[::-1]}, {}, "display_values fall"),
        (COUNTED, {"display_values": COUNTED.display_values[1:]}, {}, "not as many"),
        (COUNTED, {"display_values": (), "display_scores": ()}, {}, "not as many"),
        (COUNTED, {"model_digest": "a" * 64}, {}, "model_digest does not begin with model_id"),
        (AVERAGED, {"p_value": 1e-300}, {}, "p_value 1e-300 is too small for accepted"),
        (AVERAGED, {"p_value": 0.2}, {}, "above 1 - confidence"),
        (AVERAGED, {}, {"mean_loss": None}, "mean_loss is null"),
        (AVERAGED, {"accepted": 0}, {}, "accepted 0"),
        (NOTHING, {"threshold": 0.0}, {}, "labelled_images_needed"),
        (NOTHING, {"threshold": 0.0, "labelled_images_needed": 0}, {}, "accepted 0"),
        (NOTHING, {"accepted": 3}, {}, "without a threshold"),
        (NOTHING, {"p_value": 0.01}, {}, "without a threshold"),
        (NOTHING, {}, {"bad": 0}, "without a threshold"),
        (NOTHING, {"labelled_images_needed": 0}, {}, "labelled_images_needed"),
    ],
)
def test_a_forged_policy_is_refused_in_one_line(
    policy: Policy, change: dict[str, Any], promised: dict[str, Any], said: str
) -> None:
    forged = replace(policy, promised=replace(policy.promised, **promised), **change)
    with pytest.raises(PolicyError, match=f"policy.json .*{said}.*: run segpipe calibrate again") as caught:
        from_json(to_json(sealed(forged)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", [COUNTED, AVERAGED, NOTHING, GUARDED])
def test_what_calibration_makes_is_read(policy: Policy) -> None:
    assert from_json(to_json(policy)) == policy


def test_what_no_threshold_accepts_is_counted() -> None:
    assert (COUNTED.held_back, COUNTED.accepted, COUNTED.threshold) == (0, 106, 94)
    assert (GUARDED.held_back, GUARDED.accepted, GUARDED.threshold) == (50, 75, 100)
    without_score = calibrated([*SCORES[:-3], np.nan, np.inf, -np.inf], np.full(200, 0.9))
    assert without_score.held_back == 3


@pytest.mark.parametrize("policy", [COUNTED, AVERAGED, NOTHING, GUARDED])
def test_a_policy_of_a_version_that_did_not_count_them_is_read(policy: Policy) -> None:
    older = sealed(replace(policy, held_back=None))
    assert "held_back" not in to_json(older)
    assert from_json(to_json(older)) == older


GUARD = ClassGuard("person", 0, 0.5)
score = st.one_of(
    st.floats(-20, 20), st.sampled_from([0.0, 1.0, 1.0 + 1e-15, 1.0 - 1e-15, float("nan"), float("inf")])
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_policy_that_calibration_makes_is_refused(data: st.DataObject) -> None:
    scores = np.array(data.draw(st.lists(score, min_size=1, max_size=150)))
    size = data.draw(st.sampled_from([1, 3]))
    group = [f"{number // size:03d}" for number in range(len(scores))]
    assume(np.isfinite(scores[one_per_group(group)]).any())
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    ious = np.clip(random.random(len(scores)) + data.draw(st.sampled_from([0, 0.4, 0.9])), 0, 1)
    guarded = data.draw(st.booleans())
    policy = calibrated(
        scores,
        ious,
        data.draw(st.sampled_from([BAD, LOSS, MeanLoss(0.9), BadFraction(0.2, 0.5)])),
        group=group,
        guards=[GUARD] if guarded else [],
        class_confidences=random.random((len(scores), 1)) if guarded else None,
        candidate_thresholds=data.draw(st.sampled_from([None, [-1e6], [-25.0, 0.5, 1.0, 30.0]])),
        warnings=data.draw(st.sampled_from([(), ("class car has no pixel",)])),
        model_digest=data.draw(st.sampled_from([None, MODEL + "0" * 52])),
    )
    assert from_json(to_json(policy)) == policy
