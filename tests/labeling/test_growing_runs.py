"""Runs under a policy that grows: what they draw, which policy they take, and what a resume keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from growing_output import growing_policy

from segpipe import storage
from segpipe.confidence.audit_draw import is_drawn, is_from_scratch
from segpipe.confidence.growing import Draws
from segpipe.confidence.grown_policy import grown_policy
from segpipe.confidence.policy import Policy
from segpipe.config import LabelSettings, VerifySettings
from segpipe.errors import PolicyError, RunError, StorageError
from segpipe.labeling import decisions, ledger
from segpipe.labeling.decisions import Rules
from segpipe.labeling.plan import summarise_plan
from segpipe.labeling.run import label_run, label_source, start_run
from segpipe.manifests import policies
from segpipe.manifests.query import query
from segpipe.manifests.store import read_manifest
from segpipe.manifests.verification import verify
from segpipe.reports.lines import label_report

Make = Callable[..., Any]


@pytest.fixture
def half(settings: LabelSettings) -> LabelSettings:
    return settings.model_copy(update={"audit_share": 0.5})


def grown(root: Policy, number: int = 1) -> Policy:
    """It accepts all scores."""
    draws = Draws(*(np.full(100, value) for value in (0.9, False, 0.02, False, False)))
    return grown_policy(root, draws, number, "2026-11-25T00:00:00+00:00")


def test_all_masks_are_drawn_alike_and_an_accepted_one_that_is_drawn_is_the_audit(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 40)
    policy = growing_policy()
    label_source(source, output, make_labeler(policy=policy), half)
    rows = read_manifest(output).to_pylist()
    assert {row["decision"] for row in rows} == {"accepted", "review"}
    for row in rows:
        image = (row["image_uri"], row["image_etag"], row["model_id"], policy.policy_id)
        assert (row["drawn"], row["draw_probability"]) == (is_drawn(*image, 0.5), 0.5)
        assert row["from_scratch"] == (row["drawn"] and is_from_scratch(*image, 0.2))
        accepted = row["decision"] == "accepted"
        assert row["audit"] == (accepted and row["drawn"])
        assert row["inclusion_probability"] == (0.5 if accepted else 1.0)
    drawn = {row["decision"] for row in rows if row["drawn"]}
    assert drawn == {"accepted", "review"}
    assert not verify(output, VerifySettings()).findings


def test_no_less_is_drawn_than_the_policy_needs_and_none_where_it_does_not_grow() -> None:
    assert Rules(growing_policy(draw_share=0.1), 0.02, False, False).draw_share == 0.1
    assert Rules(growing_policy(draw_share=0.1), 0.3, False, False).draw_share == 0.3
    assert Rules(growing_policy(draw_share=None), 0.02, False, False).draw_share == 0.02


def test_a_policy_that_does_not_grow_draws_as_before(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 12)
    label_source(source, output, make_labeler(policy=growing_policy(draw_share=None)), half)
    rows = read_manifest(output).to_pylist()
    assert {(row["drawn"], row["draw_probability"], row["from_scratch"]) for row in rows} == {(None,) * 3}


def test_a_run_takes_the_newest_policy_that_has_grown_here_and_says_so(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 30)
    root = growing_policy()
    labeler = make_labeler(policy=root)
    first = label_source(source, output, labeler, half, "r1", limit=10)
    for number in (1, 2):
        assert policies.create_grown(output, grown(root, number))
    newest = grown(root, 2)
    assert not policies.create_grown(output, newest)  # the number is taken
    assert (
        summarise_plan(start_run(source, output, labeler, half, "r2", limit=10)).policy_id == newest.policy_id
    )
    second = label_source(source, output, labeler, half, "r2")
    assert (first.policy_id, second.policy_id) == (root.policy_id, newest.policy_id)
    assert (second.accepted, second.review) == (10, 0)
    report = label_report(second, policies.policy_of_run(output, root, second.policy_id), "m", None)
    assert (
        f"{newest.policy_id}, number 2 that has grown in OUTPUT from the model's own {root.policy_id}"
        in report
    )
    assert set(policies.kept_policies(output)) == {root.policy_id, newest.policy_id}
    rows = [row for row in read_manifest(output).to_pylist() if row["run_id"] == "r2"]
    for row in rows:  # one draw for the whole family
        image = (row["image_uri"], row["image_etag"], row["model_id"], root.policy_id)
        assert row["audit"] == row["drawn"] == is_drawn(*image, 0.5)
    assert verify(output, VerifySettings()).findings == {"review": 2}  # they stand on no answers


def test_a_run_goes_on_under_the_policy_it_was_planned_with(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make, monkeypatch: Any
) -> None:
    fill(source, 12)
    root = growing_policy()
    labeler = make_labeler(policy=root)
    policies.create_grown(output, grown(root))

    def killed(*_: object) -> None:
        raise StorageError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "commit_part", killed)
        with pytest.raises(StorageError):
            label_source(source, output, labeler, half, "r1")
    policies.create_grown(output, grown(root, 2))
    summary = label_source(source, output, labeler, half, "r1")
    assert summary.policy_id == grown(root).policy_id
    assert {row["policy_id"] for row in read_manifest(output).to_pylist()} == {summary.policy_id}


def test_a_bundle_that_was_calibrated_again_by_hand_makes_the_grown_ones_moot(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 8)
    root, again = growing_policy(), growing_policy(created_at="2026-11-30T00:00:00+00:00")
    policies.create_grown(output, grown(root))
    plan = start_run(source, output, make_labeler(policy=root), half, "r1", limit=4)
    summary = label_source(source, output, make_labeler(policy=again), half, "r2", limit=4)
    assert summary.policy_id == again.policy_id
    with pytest.raises(RunError, match="start a run with another id"):
        label_run(plan, make_labeler(policy=again), half)
    with pytest.raises(RunError, match="start a run with another id"):
        label_run(plan, make_labeler(policy=None), half)


def test_a_damaged_grown_policy_stops_the_run_by_name(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 4)
    root = growing_policy()
    storage.put(policies.grown_uri(output, root.policy_id, 7), b"{}")
    with pytest.raises(PolicyError, match=r"grown-00000007.json has schema version.*recalibrate"):
        label_source(source, output, make_labeler(policy=root), half)


def test_a_suspension_of_the_family_holds_for_what_has_grown_from_it(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 4)
    root = growing_policy()
    policies.create_grown(output, grown(root))
    policies.suspend(output, root.policy_id, "{}")
    summary = label_source(source, output, make_labeler(policy=root), half)
    assert (summary.reasons, summary.policy_id) == ({"suspended": 4}, grown(root).policy_id)
    assert verify(output, VerifySettings()).findings == {"review": 1}  # it stands on no answers
    assert f"the promise of policy {root.policy_id} is broken" in label_report(
        summary, grown(root), "m", None
    )


def test_drift_is_tested_also_while_nothing_is_accepted_yet(settings: LabelSettings) -> None:
    growing = growing_policy(20)
    assert growing.threshold is None
    assert decisions.tested_for_drift([], growing, settings, []) is not None
    assert decisions.tested_for_drift([], growing_policy(20, draw_share=None), settings, []) is None


def test_what_is_drawn_on_the_review_side_is_asked_even_where_another_model_was_corrected(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make
) -> None:
    fill(source, 30)
    label_source(source, output, make_labeler(policy=growing_policy()), half)
    asked = query(output, "SELECT count(*) AS n FROM review_queue WHERE drawn").to_pylist()[0]["n"]
    drawn = query(output, "SELECT count(*) AS n FROM labels WHERE drawn").to_pylist()[0]["n"]
    assert asked == drawn > 0


FORGED = (
    ({"drawn": True}, "drawn True, but its draw"),
    ({"draw_probability": 0.001}, "is less than the policy's 0.02"),
    ({"from_scratch": True, "drawn": False}, "from_scratch, but not drawn"),
    ({"draw_probability": 0.3}, "but drawn"),
)


@pytest.mark.parametrize(("changes", "said"), FORGED)
def test_verify_finds_draws_that_labelling_did_not_make(changes: dict[str, Any], said: str) -> None:
    from segpipe.manifests.row_checks import Grounds, row_problems

    policy = growing_policy()
    image = next(
        {"image_uri": f"/{number}", "image_etag": "e", "model_id": policy.model_id}
        for number in range(9)
        if not is_drawn(f"/{number}", "e", policy.model_id, policy.policy_id, 0.3)
    )
    row = image | {
        "mask_uri": "m", "mask_sha256": "s", "decision": "accepted", "reason": "confident",
        "confidence": 0.9, "discriminator_score": 0.9, "class_confidences": [0.9], "audit": False,
        "inclusion_probability": 0.02, "policy_id": policy.policy_id, "run_id": "r", "shard": 0,
        "error": None, "drawn": False, "draw_probability": 0.02, "from_scratch": False,
    }  # fmt: skip
    grounds = Grounds({policy.policy_id: policy}, frozenset(), False)
    assert list(row_problems(row, grounds)) == []
    assert any(said in problem for problem in row_problems(row | changes, grounds))
    fixed = growing_policy(draw_share=None)
    fixed_grounds = Grounds({fixed.policy_id: fixed}, frozenset(), False)
    said_of_fixed = row_problems(row | {"policy_id": fixed.policy_id}, fixed_grounds)
    assert "drawn False, but its policy does not grow" in list(said_of_fixed)


def test_verify_names_a_grown_policy_that_is_damaged(
    source: str, output: str, half: LabelSettings, make_labeler: Make, fill: Make, tmp_path: Path
) -> None:
    fill(source, 4)
    root = growing_policy()
    label_source(source, output, make_labeler(policy=root), half)
    text = json.loads(storage.read_bytes(policies.kept_uri(output, root.policy_id)))
    storage.put(policies.grown_uri(output, root.policy_id, 1), json.dumps(text | {"threshold": 0.0}).encode())
    assert verify(output, VerifySettings()).findings == {"policy": 1}
    assert replace(root, threshold=0.0) != root
