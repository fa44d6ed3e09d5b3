"""Who is audited: a uniform share, the same again whenever asked, whatever the score."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from segpipe import storage
from segpipe.confidence.audit_draw import is_drawn, is_from_scratch
from segpipe.labeling.run import label_run, label_source, start_run
from segpipe.manifests import policies
from segpipe.manifests.store import read_manifest

POLICY = "0123456789ab"
text = st.text(max_size=20)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_share_of_drawn_masks_is_that_asked_for(share: float) -> None:
    n = 20_000
    drawn = sum(is_drawn(f"s3://b/{number}.jpg", "etag", "m", POLICY, share) for number in range(n))
    low, high = binom.interval(1 - 1e-6, n, share)
    assert low <= drawn <= high


@given(text, text, text, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_draws_the_same_and_more(
    uri: str, etag: str, model: str, one: float, other: float
) -> None:
    draws = [is_drawn(uri, etag, model, POLICY, share) for share in sorted((one, other))]
    assert draws == sorted(draws)
    assert not is_drawn(uri, etag, model, POLICY, 0)
    assert is_drawn(uri, etag, model, POLICY, 1)


def test_each_policy_and_each_version_of_an_image_is_drawn_anew() -> None:
    def draws(etag: str, model: str, policy: str) -> list[bool]:
        return [is_drawn(f"{number}.jpg", etag, model, policy, 0.5) for number in range(2000)]

    first = draws("e", "m", POLICY)
    for others in (("f", "m", POLICY), ("e", "n", POLICY), ("e", "m", "ba9876543210")):
        agreeing = sum(one == other for one, other in zip(first, draws(*others), strict=True))
        assert abs(agreeing - 1000) < 5 * math.sqrt(500)


@pytest.mark.parametrize("draw", [is_drawn, is_from_scratch])
def test_the_draw_is_given_no_score(draw: Callable[..., bool]) -> None:
    parameters = ["image_uri", "image_etag", "model_id", "family", "share"]
    assert list(inspect.signature(draw).parameters) == parameters


def test_who_draws_from_scratch_does_not_depend_on_what_is_drawn() -> None:
    """Of 4,000 drawn masks a fifth, 800, and of all others too: two binomials with a deviation of 25 each."""
    images = [(f"s3://b/{number}.jpg", "etag", "m", POLICY) for number in range(8000)]
    drawn = [is_drawn(*image, 0.5) for image in images]
    scratch = [is_from_scratch(*image, 0.2) for image in images]
    both = sum(one and other for one, other in zip(drawn, scratch, strict=True))
    assert abs(both - 800) < 150
    assert abs(sum(scratch) - both - 800) < 150


def test_rows_say_what_was_drawn_and_how_likely_it_was(
    tmp_path, settings, make_labeler, make_policy, fill
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    fill(source, 24)
    asked = settings.model_copy(update={"audit_share": 0.5})
    policy = make_policy(0.5)
    label_source(source, output, make_labeler(policy=policy), asked, "r1")
    rows = read_manifest(output).to_pylist()
    for row in rows:
        accepted = row["decision"] == "accepted"
        assert row["inclusion_probability"] == (0.5 if accepted else 1.0)
        expected = is_drawn(row["image_uri"], row["image_etag"], row["model_id"], "p1", 0.5)
        assert row["audit"] == (accepted and expected)
    assert {row["audit"] for row in rows} == {True, False}
    assert {row["reason"] for row in rows if row["audit"]} == {"confident"}


def test_a_drifted_run_claims_no_audits(tmp_path, settings, make_labeler, make_policy, fill) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    fill(source, 30)  # dark pictures and bright ones, the calibration has none of them
    calibrated = make_policy(0.0, score_quantiles=tuple(5 + number / 100 for number in range(101)))
    changed = settings.model_copy(update={"audit_share": 1.0, "shard_images": 30})
    label_source(source, output, make_labeler(policy=calibrated), changed, "r1")
    rows = read_manifest(output).to_pylist()
    assert {(row["reason"], row["audit"], row["inclusion_probability"]) for row in rows} == {
        ("drift", False, 1.0)
    }


def test_a_suspended_policy_accepts_nothing_from_the_next_shard_on(
    tmp_path, settings, make_labeler, make_policy, fill
) -> None:
    source, output = storage.normalise(tmp_path / "in"), storage.normalise(tmp_path / "out")
    fill(source, 12)
    labeler = make_labeler(policy=make_policy(0.0))
    plan = start_run(source, output, labeler, settings, "r1", limit=4)
    label_run(plan, labeler, settings)
    assert policies.suspend(output, "p1", "{}")
    assert not policies.suspend(output, "p1", "{}")
    summary = label_source(source, output, labeler, settings, "r2")
    assert summary.reasons == {"suspended": 8}
    rows = [row for row in read_manifest(output).to_pylist() if row["run_id"] == "r2"]
    assert {(row["decision"], row["audit"], row["inclusion_probability"]) for row in rows} == {
        ("review", False, 1.0)
    }
    fill(source, 14)
    recalibrated = make_labeler("bbbbbbbbbbbb", policy=make_policy(0.0, "bbbbbbbbbbbb"))
    object.__setattr__(recalibrated.policy, "policy_id", "p2")
    assert label_source(source, output, recalibrated, settings, "r3").accepted == 14
