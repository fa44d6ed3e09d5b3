"""A policy with certificates per group: what each group's images become, in a run, killed or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from plain_policy import make_policy

from segpipe import name_groups, storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import Policy, sealed
from segpipe.config import LabelSettings, VerifySettings
from segpipe.labeling import ledger as ledger_module
from segpipe.labeling.decisions import Rules, decide
from segpipe.labeling.run import label_source
from segpipe.manifests.query import query
from segpipe.manifests.row_checks import CHECKED_COLUMNS, Grounds, row_problems
from segpipe.manifests.schema import Row
from segpipe.manifests.verification import verify
from segpipe.reports import summary as words
from segpipe.review.audit import audit_output

PER = r"day \d"
SETTINGS = LabelSettings(shard_images=40, batch_images=8, fetch_threads=3, claim_seconds=20, audit_share=0.5)


class KilledError(BaseException):
    """As the operating system ends a process."""


@pytest.fixture
def policy(make_labeler: Callable[..., Any]) -> Policy:
    """Day 0 is calibrated as its pictures score, day 1 on images that score otherwise, day 2 on too few."""
    like, other = np.linspace(0.05, 0.76, 200), np.linspace(-3, -2, 200)
    scores = np.concatenate([like, other, like[:5]])
    return make_policy(
        scores,
        np.where((scores > 0) & (scores < 0.3), 0.1, 0.9),
        make_labeler().model_id,
        BadFraction(0.5, 0.1),
        0.9,
        "f" * 64,
        "2026-11-23T00:00:00+00:00",
        per=PER,
        per_group=["day 0"] * 200 + ["day 1"] * 200 + ["day 2"] * 5,
    )


@pytest.fixture
def pictures(source: str, fill: Callable[..., list[str]], picture: Callable[..., bytes]) -> list[str]:
    """48 pictures of the three days, one of a fourth, which nobody calibrated on, and one of none."""
    uris = fill(source, 48)
    for name in ("day 3/new.png", "yard.png"):
        storage.put(f"{source}/{name}", picture(199 if "new" in name else 201))
    return [*uris, f"{source}/day 3/new.png", f"{source}/yard.png"]


def reasons(output: str) -> dict[str, Counter[str]]:
    """How many images of each folder have which reason."""
    found: dict[str, Counter[str]] = {}
    for row in query(output, "SELECT * FROM labels").to_pylist():
        found.setdefault(row["image_uri"].split("/")[-2], Counter())[row["reason"]] += 1
    return found


def test_a_camera_that_was_moved_sends_its_own_masks_to_review_and_no_others(
    source: str,
    output: str,
    make_labeler: Callable[..., Any],
    policy: Policy,
    pictures: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    summary = label_source(source, output, make_labeler(policy=policy), SETTINGS, "r1")
    found = reasons(output)
    threshold = policy.certificates[0].threshold
    assert threshold is not None
    scores = [(255 - 5 * number) * 0.75 / 255 for number in range(0, 48, 3)]
    accepted = sum(score >= threshold for score in scores)
    assert found["day 0"].keys() == {"confident", "low_confidence"}
    assert abs(found["day 0"]["confident"] - accepted) <= 1  # halves of pixels are cut off
    assert found["day 1"] == {"drift": 16}
    assert found["day 2"] == {"uncertified_group": 16}
    assert found["day 3"] == {"uncertified_group": 1}
    assert found["in"] == {"uncertified_group": 1}
    assert summary.drift is None
    assert {group: drift.alarm for group, drift in summary.drift_by_group.items()} == {
        "day 0": False,
        "day 1": True,
    }
    assert "the images of group day 1 in run r1 are not like its calibration images" in caplog.text
    line = words.drift_line(summary)
    assert line is not None
    assert line.startswith("ALARM, not like their calibration images: day 1 (p = ")
    assert "their masks went to review; 1 groups show none, 0 have too few scores" in line
    assert {count.decision for count in words.decision_counts(summary)} == {"accepted", "review"}
    found_wrong = verify(output, VerifySettings())  # the labeler shows no policy's confidence, in each row
    assert found_wrong.findings == {"row": 50}
    assert all("the policy shows" in finding.what for finding in found_wrong.examples)


def test_a_resumed_run_keeps_the_verdict_on_each_group(
    source: str,
    output: str,
    make_labeler: Callable[..., Any],
    policy: Policy,
    pictures: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = ledger_module.commit_part

    def killed(out: Any, run_date: Any, run_id: Any, shard: int, table: Any) -> str | None:
        if shard == 1:
            raise KilledError
        return commit(out, run_date, run_id, shard, table)

    monkeypatch.setattr(ledger_module, "commit_part", killed)
    with pytest.raises(KilledError):
        label_source(source, output, make_labeler(policy=policy), SETTINGS, "r1")
    monkeypatch.undo()
    jumpy = SETTINGS.model_copy(update={"drift_false_alarm_rate": 0.999999})
    summary = label_source(source, output, make_labeler(policy=policy), jumpy, "r1")
    assert summary.drift_by_group["day 0"].false_alarm_rate == 0.0001 / 2
    assert reasons(output)["day 1"] == {"drift": 16}
    assert "drift" not in reasons(output)["day 0"]


def test_a_name_that_the_pattern_does_not_end_on_is_reviewed_with_a_warning_and_the_night_goes_on(
    source: str,
    output: str,
    make_labeler: Callable[..., Any],
    policy: Policy,
    pictures: list[str],
    picture: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(name_groups, "LONGEST_SEARCH", 0.02)
    endless = "a" * 60
    storage.put(f"{source}/{endless}/new.png", picture(202))
    policy = sealed(replace(policy, per=r"(day \d)|(a|a)*!"))
    label_source(source, output, make_labeler(policy=policy), SETTINGS, "r1")
    found = reasons(output)
    assert found[endless] == {"uncertified_group": 1}
    assert found["day 0"].keys() == {"confident", "low_confidence"}
    (said,) = (line for line in caplog.messages if "does not end" in line)
    assert said.startswith("the group of 1 images is unknown, so they are reviewed: the regular expression")
    assert f"{endless}/new.png'" in said
    storage.put(f"{source}/day 0/late.png", picture(203))
    label_source(source, output, make_labeler(policy=policy), SETTINGS, "r2")  # drift looks at r1, too
    assert {one.group: one.accepted > 0 for one in audit_output(output).found} == {
        "day 0": True,
        "day 1": False,
    }
    assert all("the policy shows" in finding.what for finding in verify(output, VerifySettings()).examples)


@pytest.mark.parametrize(
    ("folder", "score", "rules", "expected"),
    [
        ("day 0", 0.7, {}, "confident"),
        ("day 0", 0.1, {}, "low_confidence"),
        ("day 1", -2.5, {}, "confident"),
        ("day 1", -2.5, {"drifted_groups": frozenset({"day 1"})}, "drift"),
        ("day 0", 0.7, {"drifted_groups": frozenset({"day 1"})}, "confident"),
        ("day 2", 0.7, {"drifted_groups": frozenset({"day 1"})}, "uncertified_group"),
        ("day 2", 0.7, {}, "uncertified_group"),
        ("day 7", 1e9, {}, "uncertified_group"),
        ("day 0 archive/day 1", -2.5, {}, "uncertified_group"),
        ("day 0 archive/day 7", 0.7, {}, "uncertified_group"),
        ("day 0 archive/day 0", 0.7, {}, "confident"),
        ("day 7", 1e9, {"suspended": True}, "suspended"),
    ],
)
def test_a_row_is_decided_by_its_groups_certificate_and_found_right(
    policy: Policy, folder: str, score: float, rules: dict[str, Any], expected: str
) -> None:
    row = undecided_row(policy.model_id, f"s3://b/{folder}/a.png", score)
    (decided,) = decide([row], Rules(policy, 1.0, False, **{"suspended": False} | rules))
    assert decided.reason == expected
    assert decided.decision == ("accepted" if expected == "confident" else "review")
    suspended = frozenset({policy.policy_id} if rules.get("suspended") else ())
    grounds = Grounds({policy.policy_id: policy}, suspended, False, rules.get("drifted_groups", frozenset()))
    possible = {reason for reason in ALL if not problems(decided, reason, grounds)}
    # A suspension, or an alarm, may have come in the middle of a run.
    assert possible == {expected} | EARLIER.get((folder, expected), set())


def test_a_bucket_that_is_named_like_another_camera_sends_nothing_to_review(policy: Policy) -> None:
    row = undecided_row(policy.model_id, "s3://day 1/day 0/a.png", 0.7)
    (decided,) = decide([row], Rules(policy, 1.0, False, False))
    assert (decided.decision, decided.reason) == ("accepted", "confident")
    assert problems(decided, "confident", Grounds({policy.policy_id: policy}, frozenset(), False)) == []


ALL = ("confident", "low_confidence", "drift", "uncertified_group", "suspended")
EARLIER = {("day 1", "drift"): {"confident"}, ("day 7", "suspended"): {"uncertified_group"}}


def problems(row: Row, reason: str, grounds: Grounds) -> list[str]:
    """What verification says of the row had it this reason, but for the confidence, which is not its own."""
    decision = "accepted" if reason == "confident" else "review"
    checked = {name: getattr(row, name) for name in CHECKED_COLUMNS}
    checked |= {"reason": reason, "decision": decision, "audit": decision == "accepted"}
    return [line for line in row_problems(checked, grounds) if not line.startswith("confidence")]


def undecided_row(model_id: str, uri: str, score: float) -> Row:
    """As an engine gives it."""
    return Row(
        image_uri=uri, image_etag="e", image_bytes=1, image_width=1, image_height=1,
        mask_uri="s3://o/a.png", mask_sha256="0" * 64, decision="review", reason="no_policy", confidence=0.9,
        discriminator_score=score, class_fractions=[1.0], class_confidences=[0.9], audit=False,
        inclusion_probability=1.0, model_id=model_id, policy_id=None, run_id="r1", shard=0,
        labeled_at=datetime.now(UTC), error=None,
    )  # fmt: skip


def test_only_warned_of_drift_changes_no_decision(
    source: str, output: str, make_labeler: Callable[..., Any], policy: Policy, pictures: list[str]
) -> None:
    settings = SETTINGS.model_copy(update={"drift_warn_only": True})
    summary = label_source(source, output, make_labeler(policy=policy), settings, "r1")
    assert summary.drift_by_group["day 1"].alarm
    assert "drift" not in summary.reasons
    assert reasons(output)["day 1"] == {"confident": 16}
    line = words.drift_line(summary)
    assert line is not None
    assert "only warned of" in line
