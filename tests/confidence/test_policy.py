from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_policy import make_policy

from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.confidence.policy import (
    BadFractionPromise,
    ClassGuard,
    Guard,
    MeanLossPromise,
    check_policy_for_model,
    check_policy_for_precision,
    display_confidence,
    from_json,
    is_guarded,
    on_classes,
    to_json,
)
from segpipe.confidence.promise import meaning, promise
from segpipe.errors import PolicyError


def policy_for(scores, image_ious, min_iou=0.6, max_bad_fraction=0.1, confidence=0.9, **options):
    return promised(scores, image_ious, BadFraction(min_iou, max_bad_fraction), confidence, **options)


def promised(scores, image_ious, target, confidence=0.9, **options):
    return make_policy(
        scores,
        image_ious,
        model_id="0123456789ab",
        target=target,
        confidence=confidence,
        calibration_fingerprint="f" * 64,
        created_at="2026-01-02T03:04:05+00:00",
        **options,
    )


NIGHTS = ((50, 2), (1000, 50))
PERSON = ClassGuard("person", 0, 0.5)


@pytest.fixture(scope="module")
def policy():
    # the better half of 200 images is good, the other half bad
    scores = np.arange(200.0)
    return policy_for(scores, np.where(scores >= 100, 0.9, 0.3))


def test_the_threshold_keeps_the_good_half_and_some_slack(policy):
    assert policy.threshold <= 100
    assert policy.accepted == 200 - policy.threshold
    assert policy.promised == BadFractionPromise(0.6, 0.1, 100 - policy.threshold)
    assert policy.p_value <= 0.1
    assert policy.n_calibration == 200


def test_bad_means_strictly_below_the_minimum_iou():
    at_limit = policy_for(np.arange(50.0), np.full(50, 0.6))
    below = policy_for(np.arange(50.0), np.full(50, 0.6 - 1e-9))
    assert (at_limit.promised.bad, at_limit.accepted) == (0, 50)
    assert below.threshold is None


def test_given_candidate_thresholds_are_the_ones_used():
    scores = np.arange(50.0)
    assert policy_for(scores, np.ones(50), candidate_thresholds=[10.5, 20.5]).threshold == 10.5


def test_score_quantiles_are_the_percentiles(policy):
    assert len(policy.score_quantiles) == 101
    assert policy.score_quantiles[::50] == pytest.approx((0.0, 99.5, 199.0))


def test_display_confidence_of_a_hand_worked_isotonic_fit():
    # 0.2, then 0.6 and 0.4 pooled to 0.5, then 0.9
    shown = policy_for([0, 1, 2, 3], [0.2, 0.6, 0.4, 0.9])
    expected = {-5: 0.2, 0: 0.2, 0.5: 0.35, 1: 0.5, 1.7: 0.5, 2: 0.5, 2.5: 0.7, 3: 0.9, 99: 0.9}
    assert {score: pytest.approx(display_confidence(shown, score)) for score in expected} == expected
    assert display_confidence(shown, math.nan) == 0.0


def test_display_confidence_pools_equal_scores():
    shown = policy_for([0, 1, 1, 1], [0.0, 0.3, 0.6, 0.9])
    assert display_confidence(shown, 1) == pytest.approx(0.6)
    falling = policy_for([0, 0, 1], [0.9, 0.9, 0.3])
    assert display_confidence(falling, 0) == pytest.approx(0.7)


def test_a_single_calibration_image_promises_nothing_but_makes_a_policy():
    lone = policy_for([1.0], [0.8])
    assert lone.threshold is None
    assert lone.labelled_images_needed == 21
    assert display_confidence(lone, -3) == pytest.approx(0.8)


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 1)), min_size=1, max_size=30),
    st.lists(st.floats(-60, 60), min_size=2, max_size=5),
)
def test_display_confidence_never_falls_as_the_score_rises(images, asked):
    shown = policy_for(*zip(*images, strict=True))
    values = [display_confidence(shown, score) for score in sorted(asked)]
    assert all(0 <= value <= 1 for value in values)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))


def test_the_promise_is_a_sentence_with_its_proof():
    scores = np.arange(130.0)
    signed = policy_for(scores, [0.3] + [0.9] * 129, max_bad_fraction=0.05, confidence=0.95)
    assert promise(signed) == (
        "at most 5% of accepted masks have IoU below 0.60, with 95% confidence "
        "(accepted 130 of 130 calibration images, 1 bad)"
    )


def test_the_promise_does_not_round_its_numbers():
    precise = policy_for(np.arange(500.0), np.ones(500), 0.625, 0.025, 0.995)
    assert "at most 2.5% of accepted masks have IoU below 0.625, with 99.5% confidence" in promise(precise)


def test_without_a_threshold_it_says_how_many_images_are_missing():
    few = policy_for(np.arange(10.0), np.ones(10))
    assert few.labelled_images_needed == 12
    assert promise(few) == (
        "nothing is accepted: 10 calibration images cannot prove that at most 10% of accepted masks have IoU "
        "below 0.60, with 90% confidence; about 12 more labelled images are needed"
    )


def test_one_image_is_one_image():
    alone = policy_for([1.0], [1.0])
    assert promise(alone).startswith("nothing is accepted: 1 calibration image cannot prove that")
    of_a_group = policy_for([1.0, 2.0], [1.0, 1.0], group=["a", "a"])
    assert promise(of_a_group).startswith("nothing is accepted: 1 group of calibration images cannot prove")
    nearly = policy_for(np.arange(21.0), np.ones(21))
    assert promise(nearly).endswith("about 1 more labelled image is needed")
    nearly = policy_for(np.arange(42.0), np.ones(42), group=[f"{n // 2}" for n in range(42)])
    assert promise(nearly).endswith("about 1 more group of labelled images is needed")


@pytest.mark.parametrize("target", [BadFraction(0.6, 0.1), MeanLoss(0.3)])
def test_where_nothing_is_accepted_there_is_no_figure_of_what_is(target):
    nothing = promised(np.arange(4.0), np.ones(4), target)
    assert (nothing.threshold, nothing.accepted) == (None, 0)
    content = json.loads(to_json(nothing))
    assert content["bad" if isinstance(target, BadFraction) else "mean_loss"] is None
    assert from_json(to_json(nothing)) == nothing


def test_without_hope_it_says_so():
    hopeless = policy_for(np.arange(100.0), np.zeros(100))
    assert hopeless.labelled_images_needed is None
    assert "more labels are not expected to help" in promise(hopeless)


def test_a_policy_belongs_to_one_model(policy):
    check_policy_for_model(policy, "0123456789ab")
    with pytest.raises(PolicyError, match="made for model 0123456789ab, not for ffff"):
        check_policy_for_model(policy, "ffff")


def test_json_round_trip_is_exact(policy):
    assert from_json(to_json(policy)) == policy
    for target in (BadFraction(0.6, 0.1), MeanLoss(0.3)):
        promised_nothing = promised([1.0], [0.0], target, guards=[PERSON], class_confidences=[[math.nan]])
        assert from_json(to_json(promised_nothing)) == promised_nothing


def test_the_file_is_flat_with_the_keys_a_reader_looks_for(policy):
    content = json.loads(to_json(policy))
    assert (content["schema_version"], content["target"]) == (2, "bad_fraction")
    assert (content["min_iou"], content["max_bad_fraction"], content["confidence"]) == (0.6, 0.1, 0.9)
    assert content["accepted"] - content["bad"] == 100
    nested = {name for name, value in content.items() if isinstance(value, (list, dict))}
    assert nested == {"guards", "score_quantiles", "display_scores", "display_values"}
    averaged = json.loads(to_json(promised(np.arange(50.0), np.full(50, 0.75), MeanLoss(0.4))))
    assert (averaged["target"], averaged["max_mean_loss"], averaged["mean_loss"]) == ("mean_loss", 0.4, 0.25)
    assert not {"min_iou", "max_bad_fraction", "bad"} & averaged.keys()


def test_the_id_names_the_content():
    images = ([1.0, 2.0], [0.5, 0.7])
    assert policy_for(*images).policy_id == policy_for(*images).policy_id
    assert policy_for(*images).policy_id != policy_for(*images, min_iou=0.61).policy_id
    assert policy_for(*images).policy_id != promised(*images, MeanLoss(0.1)).policy_id
    assert len(policy_for(*images).policy_id) == 12


def test_any_json_writer_may_have_formatted_the_file(policy):
    content = json.loads(to_json(policy))
    reordered = dict(sorted(content.items(), reverse=True))
    assert from_json(json.dumps(reordered)) == policy


POLICIES = {
    "bad fraction": policy_for(np.arange(40.0), np.full(40, 0.8)),
    "mean loss": promised(np.arange(40.0), np.full(40, 0.8), MeanLoss(0.4)),
}
FIELDS = [
    (kind, key)
    for kind, policy in POLICIES.items()
    for key in json.loads(to_json(policy))
    if key[:6] != "schema"
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_field_is_needed_and_protected(kind, field):
    content = json.loads(to_json(POLICIES[kind]))
    without = {name: value for name, value in content.items() if name != field}
    # What came after the first version may lack, but not where the id was made with it.
    said = "was edited" if field in ("held_back", "calibration_error_floor") else f"lacks {field}"
    with pytest.raises(PolicyError, match=said):
        from_json(json.dumps(without))
    for wrong in ("x", -1.5, True, [], {}, math.nan, None):
        if wrong != content[field]:
            with pytest.raises(PolicyError) as caught:
                from_json(json.dumps({**content, field: wrong}))
            assert "\n" not in str(caught.value)


def test_a_threshold_lowered_by_hand_is_refused(policy):
    content = json.loads(to_json(policy))
    with pytest.raises(PolicyError, match="edited"):
        from_json(json.dumps({**content, "threshold": content["threshold"] - 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema version 1"),
        ({"schema_version": 3}, "schema version 3"),
        ({"target": "mean_loss"}, "lacks max_mean_loss"),
        ({"max_mean_loss": 0.3}, "max_mean_loss"),
        ({"min_iou": 7}, "damaged at min_iou"),
        ({"guards": [{"class_name": "a", "class_index": 0, "min_confidence": 2}]}, "guards.0.min_confidence"),
        ({"schema_version": None}, "schema version None"),
        ({"schema_version": "2" * 99}, "schema version unknown"),
        ({"surplus": 1}, "surplus"),
        ({"\n\x1b[31m": 1}, "damaged at"),
        ({"policy_id": "a\nb"}, "damaged at policy_id"),
        ({"model_id": "a\nb"}, "damaged at model_id"),
    ],
)
def test_unknown_versions_and_fields_are_refused(policy, change, message):
    with pytest.raises(PolicyError, match=message) as caught:
        from_json(json.dumps({**json.loads(to_json(policy)), **change}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '"policy"', "[" * 100_000, '{"schema_version": 2' + "9" * 5000 + "}"],
    ids=["empty", "open", "list", "null", "none", "text", "nested", "long number"],
)
def test_text_that_is_no_policy_is_refused(text):
    with pytest.raises(PolicyError, match=r"policy\.json") as caught:
        from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "image_ious", "options", "message"),
    [
        ([1.0], [0.5, 0.6], {}, "differ"),
        ([], [], {}, "finite score"),
        ([math.nan], [0.5], {}, "finite score"),
        ([1.0, 2.0], [0.5, math.nan], {}, "calibration image 1 has IoU nan"),
        ([1.0], [60.0], {}, "IoU 60.0"),
        ([1.0], [0.5], {"min_iou": 60}, "min IoU 60"),
        ([1.0], [0.5], {"max_bad_fraction": 5}, "max bad fraction"),
        ([1.0], [0.5], {"confidence": 95}, "confidence"),
    ],
)
def test_unusable_calibration_is_named_in_one_line(scores, image_ious, options, message):
    with pytest.raises(PolicyError, match=message) as caught:
        policy_for(scores, image_ious, **options)
    assert "\n" not in str(caught.value)


def test_images_that_could_not_be_scored_count_but_are_not_accepted():
    scores = [math.nan] * 10 + list(range(40))
    judged = policy_for(scores, [0.0] * 10 + [0.9] * 40)
    assert (judged.n_calibration, judged.accepted, judged.promised.bad) == (50, 40, 0)
    assert display_confidence(judged, 5) == pytest.approx(0.9)


def test_an_infinite_score_is_never_accepted_for_routing_accepts_none():
    judged = policy_for([math.inf] * 10 + list(range(40)), [0.0] * 10 + [0.9] * 40)
    assert (judged.n_calibration, judged.accepted, judged.promised.bad) == (50, 40, 0)


# The model's full digest, and warnings.


def test_a_policy_of_a_twin_that_shares_the_first_digits_is_refused():
    digests = ["0123456789ab" + digit * 52 for digit in "01"]
    bound = policy_for([1.0], [0.8], model_digest=digests[0])
    check_policy_for_model(bound, bound.model_id, digests[0])
    with pytest.raises(PolicyError, match="only begins with the same digits") as caught:
        check_policy_for_model(bound, bound.model_id, digests[1])
    assert "\n" not in str(caught.value)
    check_policy_for_model(policy_for([1.0], [0.8]), bound.model_id, digests[1])  # of before full digests


def test_warnings_and_the_models_digest_are_kept_and_protected():
    warned = policy_for([1.0], [0.8], model_digest="0123456789ab" + "0" * 52, warnings=["car has no pixel"])
    assert from_json(to_json(warned)) == warned
    assert warned.warnings == ("car has no pixel",)
    for field in ("warnings", "model_digest"):
        content = json.loads(to_json(warned))
        del content[field]
        with pytest.raises(PolicyError, match="edited"):
            from_json(json.dumps(content))


# The mean loss.


def test_a_mean_loss_policy_accepts_more_the_more_may_be_lost():
    scores = np.linspace(0, 1, 400)
    strict, loose = (promised(scores, scores, MeanLoss(limit)) for limit in (0.2, 0.3))
    # the mean of 1 - IoU from t on is (1 - t) / 2
    assert 0.4 < loose.threshold < 0.45
    assert 0.6 < strict.threshold < 0.65
    assert isinstance(loose.promised, MeanLossPromise)
    assert loose.promised.mean_loss == pytest.approx((1 - scores[scores >= loose.threshold]).mean())


def test_the_mean_loss_promise_is_a_sentence_about_iou():
    signed = promised(np.arange(100.0), np.full(100, 0.8), MeanLoss(0.3))
    assert promise(signed) == (
        "accepted masks have a mean IoU of at least 0.70, with 90% confidence "
        "(accepted 100 of 100 calibration images, mean IoU 0.80)"
    )


def test_without_a_mean_loss_threshold_it_says_what_would_help():
    few = promised(np.arange(4.0), np.ones(4), MeanLoss(0.3))
    assert few.labelled_images_needed == 3
    assert promise(few) == (
        "nothing is accepted: 4 calibration images cannot prove that accepted masks have a mean IoU of at "
        "least 0.70, with 90% confidence; about 3 more labelled images are needed"
    )
    hopeless = promised(np.arange(100.0), np.zeros(100), MeanLoss(0.3))
    assert "not expected to help: improve the model, raise max mean loss" in promise(hopeless)


# Groups.


def test_images_of_a_group_count_once():
    frames = np.repeat(np.arange(40.0), 5)
    names = [f"sequence {number:02.0f}" for number in frames]
    by_group = policy_for(frames, np.full(200, 0.9), group=names)
    assert (by_group.n_calibration, by_group.n_images, by_group.accepted) == (40, 200, 40)
    assert by_group.p_value == pytest.approx(0.9**40)
    alone = policy_for(np.arange(40.0), np.full(40, 0.9))
    assert (by_group.threshold, by_group.score_quantiles) == (alone.threshold, alone.score_quantiles)
    assert promise(by_group) == (
        "at most 10% of accepted masks have IoU below 0.60, with 90% confidence, each group of images "
        "counting once (accepted 40 of 40 groups of calibration images, 0 bad)"
    )


def test_missing_groups_are_asked_for_as_groups():
    few = policy_for(np.arange(30.0), np.ones(30), group=list("abcde") * 6)
    assert few.labelled_images_needed == 17
    assert "about 17 more groups of labelled images are needed" in promise(few)


def test_a_group_label_is_needed_for_each_image():
    with pytest.raises(PolicyError, match="2 scores and 1 group labels"):
        policy_for([1.0, 2.0], [0.5, 0.5], group=["a"])


# Guards.


def test_a_guard_holds_back_a_mask_that_shows_its_class_too_doubtfully():
    guarded = policy_for([1.0], [0.8], guards=[ClassGuard("person", 1, 0.5)], class_confidences=[[0.9, 0.9]])
    assert is_guarded(guarded, [0.9, 0.49])
    assert not is_guarded(guarded, [0.1, 0.5])
    assert not is_guarded(guarded, [0.1, math.nan])
    assert is_guarded(guarded, np.array([math.nan, 0.1], dtype=np.float32))
    assert not is_guarded(policy_for([1.0], [0.8]), [0.0, 0.0])


def test_every_guard_is_looked_at():
    guards = [ClassGuard("person", 1, 0.5), ClassGuard("road", 0, 0.2)]
    guarded = policy_for([1.0], [0.8], guards=guards, class_confidences=[[0.9, 0.9]])
    assert is_guarded(guarded, [0.1, 0.9])
    assert is_guarded(guarded, [0.9, 0.1])
    assert not is_guarded(guarded, [0.9, 0.9])


def test_images_that_a_guard_holds_back_do_not_count_as_accepted():
    scores = np.arange(100.0)
    doubtful = np.arange(100) % 4 == 0  # bad masks, all of them with a doubtful person
    confidences = np.where(doubtful, 0.2, 0.9)[:, None]
    ious = np.where(doubtful, 0.1, 0.9)
    assert policy_for(scores, ious).threshold is None
    guarded = policy_for(scores, ious, guards=[PERSON], class_confidences=confidences)
    assert (guarded.accepted, guarded.promised.bad, guarded.n_calibration) == (
        74,
        0,
        100,
    )  # coverages go by 2%
    accepted = [
        score >= guarded.threshold and not is_guarded(guarded, row)
        for score, row in zip(scores, confidences, strict=True)
    ]
    assert sum(accepted) == 74
    unguarded = policy_for(scores, ious)
    assert guarded.score_quantiles == unguarded.score_quantiles
    assert guarded.display_values == unguarded.display_values


def test_a_guard_that_holds_back_everything_accepts_nothing():
    nothing = policy_for(np.arange(50.0), np.ones(50), guards=[PERSON], class_confidences=[[0.0]] * 50)
    assert (nothing.threshold, nothing.accepted) == (None, 0)


def test_guards_are_found_among_the_models_classes():
    assert on_classes([Guard("road", 0.3)], ("person", "road")) == (ClassGuard("road", 1, 0.3),)
    with pytest.raises(PolicyError, match=r"'cyclist', the model has no such class: .* person, road$"):
        on_classes([Guard("road", 0.3), Guard("cyclist", 0.5)], ("person", "road"))


@pytest.mark.parametrize("class_confidences", [None, [0.5, 0.5], [[0.5]]])
def test_guards_need_class_confidences(class_confidences):
    with pytest.raises(PolicyError, match=r"guards need class confidences \(2, classes\)"):
        policy_for([1.0, 2.0], [0.5, 0.5], guards=[PERSON], class_confidences=class_confidences)


def test_what_is_promised_of_a_night_and_of_a_year_is_said_with_its_odds():
    signed = policy_for(np.arange(130.0), np.ones(130), max_bad_fraction=0.05, confidence=0.95)
    # 3 or more bad of 50, 51 or more of 1,000, at a true share of 4%
    rarer = [sum(math.comb(n, k) * 0.04**k * 0.96 ** (n - k) for k in range(most + 1)) for n, most in NIGHTS]
    assert [round(1 - part, 2) for part in rarer] == [0.32, 0.05]
    assert meaning(signed) == (
        "the 95% are about this calibration, which is right or wrong as a whole, on every night alike; what "
        "is promised is the average over a year of nights: at truly 4%, more than 5% is bad in 32% of nights "
        "of 50 accepted, in 5% of nights of 1000 accepted"
    )
    assert meaning(promised(np.arange(50.0), np.ones(50), MeanLoss(0.3))).endswith(
        "a small night can be worse by chance"
    )


# The device and the precision that the scores were computed in.


def test_a_policy_of_another_precision_is_refused_with_a_remedy():
    bound = policy_for([1.0], [0.8], device="cuda", precision="bfloat16")
    check_policy_for_precision(bound, "bfloat16")
    with pytest.raises(PolicyError) as caught:
        check_policy_for_precision(bound, "float32")
    assert str(caught.value) == (
        f"policy {bound.policy_id} was calibrated in bfloat16 and this device computes in float32, which "
        "gives other scores: label where it was calibrated, or run segpipe calibrate here"
    )
    check_policy_for_precision(policy_for([1.0], [0.8]), "float32")  # of before it was kept


def test_device_and_precision_are_kept_and_protected():
    bound, plain = policy_for([1.0], [0.8], device="cuda", precision="bfloat16"), policy_for([1.0], [0.8])
    assert from_json(to_json(bound)) == bound
    assert {"device", "precision"}.isdisjoint(json.loads(to_json(plain)))
    with pytest.raises(PolicyError, match="was edited"):
        from_json(to_json(bound).replace("bfloat16", "float32"))
    with pytest.raises(PolicyError, match="is damaged at precision"):
        from_json(to_json(bound).replace("bfloat16", "float8"))
