"""What the audit says about a promise, and what it does when the promise is broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited_output import AuditedOutput
from random_model import write_random_model

from segpipe import name_groups, storage
from segpipe.cli import run
from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.labeling.decisions import Rules, decide, find_suspended_groups
from segpipe.manifests import policies
from segpipe.manifests.schema import Row
from segpipe.metrics import IouRule
from segpipe.models.bundle import read_card
from segpipe.reports.lines import audit_report
from segpipe.review.agreement import draft_iou
from segpipe.review.audit import PolicyAudit, audit_output, suspend_broken
from segpipe.review.audit_words import (
    in_words,
    skips_in_words,
    uncovered_in_words,
    unjudged_in_words,
    waiting_in_words,
)

Audited = Callable[..., Any]


def only(output: str) -> PolicyAudit:
    (found,) = audit_output(output).found
    return found


def test_a_mask_is_bad_by_the_policys_own_definition(audited: Audited) -> None:
    out = audited()
    rows = out.label(6)
    out.answer(rows[:1], "accepted")
    out.answer(rows[1:2], "corrected", 0.7)
    out.answer(rows[2:3], "corrected", 0.69)
    out.answer(rows[3:4], "rejected")
    out.answer(rows[4:5], "skipped")
    out.answer(rows[5:], "corrected", None)  # nobody can say how far it was off
    found = only(out.output)
    assert (found.audited, found.bad, found.estimate) == (4, 2, 0.5)
    assert (found.skipped, found.open, found.withdrawn, found.accepted, found.drawn) == (2, 0, 0, 6, 6)
    assert found.lower < 0.01, "one night alone proves nothing of others"
    # Chernoff's bound of a mean of four that is 0.5: 4 times the divergence of 0.5 and it is ln 20.
    assert 4 * (0.5 * math.log(0.5 / found.upper) + 0.5 * math.log(0.5 / (1 - found.upper))) == pytest.approx(
        math.log(20)
    )
    assert found.upper_with_skips > found.upper
    assert (found.limit, found.confidence, found.target) == (0.1, 0.9, "bad_fraction")
    assert found.by_month == {"2026-11": {"audited": 4, "estimate": 0.5}}


@pytest.mark.parametrize(("rule", "bad"), [(None, 3), ("every_class", 3), ("graded", 2)])
def test_a_mask_is_bad_by_the_rule_of_the_policy(audited: Audited, rule: IouRule | None, bad: int) -> None:
    """The third was pulled by a version that kept one figure: it is never the higher one."""
    out = audited(iou_rule=rule)
    for row, draft, graded in zip(out.label(3), (0.5, 0.5, 0.6), (0.99, 0.69, None), strict=True):
        out.answer([row], "corrected", draft, graded)
    assert only(out.output).bad == bad


def test_a_correction_is_measured_by_both_rules_against_the_final_mask() -> None:
    """Of the draft 20 of 10,000 pixels are of a class that is not there: it weighs a fifth."""
    draft, final = np.zeros((2, 100, 100), np.uint8)
    draft[0, :20] = 1
    assert draft_iou(draft, final, 2, "every_class") == pytest.approx(0.998 / 2)
    assert draft_iou(draft, final, 2, "graded") == pytest.approx(0.998 / 1.2)
    assert draft_iou(final, draft, 2, "graded") == pytest.approx(0.998 / 2), "missed, it counts in full"


def test_a_mean_loss_policy_is_held_to_the_mean_loss(audited: Audited) -> None:
    out = audited(MeanLoss(0.3))
    rows = out.label(4)
    for row, verdict, iou in zip(
        rows, ("accepted", "corrected", "corrected", "rejected"), (1, 0.8, 0.4, None), strict=True
    ):
        out.answer([row], verdict, iou)
    found = only(out.output)
    assert (found.audited, found.bad, found.limit) == (4, None, 0.3)
    assert found.estimate == pytest.approx((0 + 0.2 + 0.6 + 1) / 4)


def test_audits_count_in_the_order_of_the_draw_up_to_the_first_open_one(audited: Audited) -> None:
    out = audited()
    rows = out.label(10)
    out.answer(rows[5:], "rejected")  # a queue of doubtful masks first: only bad ones are answered yet
    found = only(out.output)
    assert (found.audited, found.held_back, found.open) == (0, 5, 5)
    assert (found.lower, found.upper, found.state) == (0, 1, "undecided")
    assert waiting_in_words(found) == (
        "5 audits to answer, 5 answered ones wait behind the oldest: /bucket/0000.jpg is next "
        "(answer or skip it)"
    )
    out.answer(rows[:4], "accepted")
    out.answer(rows[4:5], "skipped")
    assert (only(out.output).audited, only(out.output).held_back) == (9, 0)
    assert waiting_in_words(only(out.output)) is None


def test_an_image_that_changed_leaves_the_audit_without_holding_it_back(audited: Audited) -> None:
    out = audited()
    _gone, stays = out.label(2)
    out.answer([stays], "accepted")
    assert only(out.output).audited == 0
    out.n_rows = 0
    out.label(1, image_etag="changed", audit=False, labeled_at=stays.labeled_at)
    found = only(out.output)
    assert (found.audited, found.withdrawn, found.open) == (1, 1, 0)


def test_what_is_no_audit_of_an_accepted_mask_does_not_count(audited: Audited) -> None:
    out = audited()
    out.answer(out.label(3, decision="review", reason="low_confidence", audit=False), "rejected")
    out.answer(out.label(3, audit=False), "rejected")
    found = only(out.output)
    assert (found.drawn, found.audited, found.accepted) == (0, 0, 3)
    assert in_words(found).startswith("not watched")


def test_before_the_first_answer_it_is_said_how_many_good_ones_would_do(audited: Audited) -> None:
    out = audited()
    out.label(1)
    assert in_words(only(out.output)).endswith("no audit is answered; 36 good ones would show it kept")


def test_enough_good_audits_show_the_promise_kept(audited: Audited) -> None:
    out = audited()
    out.answer(out.label(10), "accepted")
    found = only(out.output)
    assert found.state == "undecided"
    assert f"{found.more_needed} more like these would show it kept" in in_words(found)
    out.answer(out.label(found.more_needed), "accepted")
    assert only(out.output).state == "kept"
    said = in_words(only(out.output))
    assert said.startswith("promise kept over the last 36 audits (2026-11-23): of the masks accepted then ")
    assert "bad share 0 (0 bad of 36)" in said


def test_where_all_are_skipped_nothing_is_known(audited: Audited) -> None:
    out = audited()
    out.answer(out.label(30), "skipped")
    assert skips_in_words(only(out.output)) == (
        "30 of 30; nothing is known of the bad share: a promise counts as kept only with skipped masks "
        "counted as bad"
    )
    out.answer(out.label(30), "accepted")
    said = skips_in_words(only(out.output))
    assert said is not None
    assert said.startswith("30 of 60; if all of them are bad, the bad share may be up to ")


def test_a_bound_below_what_is_promised_says_why_it_shows_nothing(audited: Audited) -> None:
    """Of 32 without a bad one at most 0.0894 are bad at 5%, which one look has; to show it kept has 2.5%."""
    out = audited()
    out.answer(out.label(32), "accepted")
    found = only(out.output)
    assert (found.state, found.more_needed) == ("undecided", 4)
    assert found.upper < found.limit
    assert "at most 0.0894 by one look at all answers, without the skipped masks, which shows" in in_words(
        found
    )
    out.answer(out.label(4), "accepted")
    assert "one look" not in in_words(only(out.output))


def test_audits_of_unlike_shares_name_no_number_that_would_do(audited: Audited) -> None:
    out = audited()
    for share, others in ((0.5, 20), (0.1, 180)):
        out.answer(out.label(20, inclusion_probability=share), "accepted")
        out.label(others, inclusion_probability=share, audit=False)
    found = only(out.output)
    assert (found.state, found.more_needed) == ("undecided", None)
    assert "not yet enough audits" in in_words(found)
    assert "more like these" not in in_words(found)


def test_a_broken_promise_suspends_the_policy_once_with_its_evidence(audited: Audited, capsys: Any) -> None:
    out = audited()
    out.answer(out.label_nights(3, 10), "accepted")
    assert run(["audit", out.output]) == 0
    out.answer(out.label_nights(5, 10), "rejected")
    found = only(out.output)
    assert found.state == "broken"
    assert found.lower > 0.1
    assert found.p_value < 0.05
    capsys.readouterr()
    assert run(["audit", out.output, "--json"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["state"] == "broken"
    assert (
        printed.err == f"segpipe: the promise of policy {out.policy.policy_id} is broken: it is suspended\n"
    )
    uri = policies.suspension_uri(out.output, out.policy.policy_id)
    evidence = storage.read_bytes(uri)
    assert json.loads(evidence)["bad"] == 50
    assert "BROKEN: bad share 0.625 (50 bad of 80)" in json.loads(evidence)["reason"]
    assert run(["audit", out.output]) == 3
    assert "BROKEN" in capsys.readouterr().out
    assert suspend_broken(out.output, audit_output(out.output).found) == []
    assert storage.read_bytes(uri) == evidence


def rules_of(out: AuditedOutput) -> Rules:
    """What decides about the next shard."""
    return Rules(
        out.policy, 0.0, False, False, suspended_groups=find_suspended_groups(out.output, out.policy)
    )


class KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
def test_an_audit_that_was_killed_is_finished_by_the_same_command(
    after: bool, audited: Audited, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = audited()
    out.answer(out.label_nights(3, 10), "rejected")
    create = storage.create

    def killed(uri: str, data: bytes) -> None:
        if after:
            create(uri, data)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(storage, "create", killed)
        with pytest.raises(KilledError):
            suspend_broken(out.output, audit_output(out.output).found)
    assert run(["audit", out.output]) == 3
    assert "BROKEN" in capsys.readouterr().out
    evidence = storage.read_bytes(policies.suspension_uri(out.output, out.policy.policy_id))
    assert json.loads(evidence)["bad"] == 30


def test_a_draft_of_which_most_was_erased_is_as_bad_as_a_repainted_one(audited: Audited) -> None:
    draft, erased, repainted = (np.zeros((10, 10), np.uint8) for _ in range(3))
    erased[3:], repainted[3:] = 255, 1
    out = audited()
    rows = out.label(3)
    for row, final in zip(rows, (erased, repainted, draft), strict=True):
        out.answer([row], "corrected", draft_iou(draft, final, 2, "every_class"))
    found = only(out.output)
    assert (found.audited, found.bad) == (3, 2)


@pytest.mark.parametrize("iou", [float("nan"), -0.1, 1.1])
def test_an_iou_that_is_none_is_no_answer(iou: float, audited: Audited) -> None:
    out = audited()
    out.answer(out.label(1), "corrected", iou)
    assert (only(out.output).audited, only(out.output).skipped) == (0, 1)


def test_a_policy_kept_under_another_ones_name_is_named_and_stops_none(audited: Audited) -> None:
    """Nothing was labelled under it."""
    out = audited()
    out.label(1)
    kept = storage.read_bytes(policies.kept_uri(out.output, out.policy.policy_id))
    storage.put(policies.kept_uri(out.output, "other"), kept)
    audits = audit_output(out.output)
    assert [one.policy_id for one in audits.found] == [out.policy.policy_id]
    (other,) = audits.unjudged
    assert unjudged_in_words(other).startswith(
        f"{policies.kept_uri(out.output, 'other')} holds policy {out.policy.policy_id}: put the policy.json"
    )


@pytest.mark.parametrize("damage", [b"{", None])
def test_a_policy_that_cannot_be_read_costs_its_own_audit_only(
    audited: Audited, capsys: Any, damage: bytes | None
) -> None:
    """Damaged or gone: the other one is suspended all the same, and nobody takes this one for kept."""
    out = audited()
    out.answer(out.label_nights(3, 10), "rejected")
    out.label(1, policy_id="lost", model_id="n")
    lost = policies.kept_uri(out.output, "lost")
    if damage:
        storage.put(lost, damage)
    assert run(["audit", out.output]) == 3
    printed = capsys.readouterr()
    line, broken = printed.err.splitlines()
    assert line.startswith(f"segpipe: policy lost of model n cannot be audited: {lost} is ")
    assert "put the policy.json of that calibration there" in line
    assert broken.endswith(f"the promise of policy {out.policy.policy_id} is broken: it is suspended")
    assert "lost" not in printed.out
    assert run(["audit", out.output, "--model", "n"]) == 1, "no false all-clear where nothing else is audited"
    assert capsys.readouterr().out == ""
    assert run(["audit", out.output]) == 1, "suspended already, and not in use"


def test_a_suspension_is_told_of_a_policy_that_cannot_be_read(audited: Audited, capsys: Any) -> None:
    """It is in use, and its audit is as broken as it was."""
    out = audited()
    out.label(1)
    storage.put(policies.kept_uri(out.output, out.policy.policy_id), b"{")
    policies.suspend(out.output, out.policy.policy_id, "{}", "cam1")
    assert run(["audit", out.output]) == 3
    assert f"; suspended already: {out.policy.policy_id}: " in capsys.readouterr().err


def test_after_recalibration_the_old_break_is_history(audited: Audited, capsys: Any) -> None:
    old = audited()
    old.answer(old.label_nights(3, 10), "rejected")
    assert run(["audit", old.output]) == 3
    new = audited(created_at="2026-11-24T00:00:00+00:00")
    new.n_parts, new.n_rows, new.night = 10, 100, 9
    new.label(1)
    assert run(["audit", new.output]) == 0
    assert [found.in_use for found in audit_output(new.output).found] == [False, True]


def test_only_a_model_that_has_labelled_is_audited_by_its_id_or_by_its_bundle(
    audited: Audited, tmp_path: Path, capsys: Any
) -> None:
    """Of any other "nothing was promised" would be a false all-clear."""
    out = audited()
    out.answer(out.label_nights(3, 10), "rejected")
    model = write_random_model(str(tmp_path / "model"))
    assert [one.state for one in audit_output(out.output, out.policy.model_id).found] == ["broken"]
    for unknown in ("f" * 12, model, str(tmp_path / "absent")):
        capsys.readouterr()
        assert run(["audit", out.output, "--model", unknown]) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert "has labelled nothing into" in printed.err or f"no model at {unknown}" in printed.err
    out.label(1, model_id=read_card(model).model_id, policy_id=None)
    for known in (model, read_card(model).model_id):
        assert run(["audit", out.output, "--model", known]) == 0
        assert "nothing was promised" in capsys.readouterr().out


def test_runs_of_five_different_audit_shares_in_one_output_count_by_their_masks(audited: Audited) -> None:
    """One bad of each share's audits: 1 of 10 here stands for 5 masks there, and for 250 elsewhere."""
    out = audited()
    masks = bad = 0.0
    for share, drawn in ((0.5, 50), (0.2, 20), (0.1, 10), (0.05, 10), (0.02, 10)):
        size = round(drawn / share)
        rows = out.label_nights(1, drawn, inclusion_probability=share)
        out.label(size - drawn, inclusion_probability=share, audit=False)
        out.answer(rows[:1], "rejected")
        out.answer(rows[1:], "accepted")
        masks, bad = masks + size, bad + size / drawn
    found = only(out.output)
    assert (found.accepted, found.drawn, found.audited, found.bad) == (masks, 100, 100, 5)
    assert found.estimate == pytest.approx(bad / masks)
    assert found.by_month["2026-11"]["estimate"] == pytest.approx(bad / masks)
    assert found.lower < bad / masks < found.upper


def test_a_run_of_a_large_share_does_not_hide_one_of_a_small_share(audited: Audited) -> None:
    """Every night 3 of 100 audits of 200 good masks, and 4 of 20 audits of 1,000 bad ones: 17%, not 6%."""
    out = audited()
    for _ in range(12):
        many = out.label_nights(1, 100, inclusion_probability=0.5)
        out.label(100, inclusion_probability=0.5, audit=False)
        few = out.label(20, inclusion_probability=0.02)
        out.label(980, inclusion_probability=0.02, audit=False)
        out.answer([*many[:3], *few[:4]], "rejected")
        out.answer([*many[3:], *few[4:]], "accepted")
    found = only(out.output)
    assert found.bad is not None
    assert found.bad / found.audited < found.limit
    assert found.estimate == pytest.approx(206 / 1200)
    assert found.state == "broken"


def test_after_a_rise_it_is_said_when_the_promise_was_last_shown_kept(audited: Audited, capsys: Any) -> None:
    out = audited(BadFraction(0.7, 0.3))
    out.answer(out.label_nights(10, 10), "accepted")
    kept = only(out.output)
    assert (kept.state, kept.last_kept, kept.got_worse) == ("kept", "2026-12-03", False)
    out.answer(out.label_nights(2, 10), "rejected")  # 20 of the last 120 audits, and of the last 70
    assert in_words(only(out.output)).startswith("promise kept over the last 120 audits")
    out.answer(out.label_nights(1, 10), "rejected")
    found = only(out.output)
    assert (found.state, found.last_kept) == ("undecided", "2026-12-05")
    out.answer(out.label_nights(1, 10), "rejected")
    found = only(out.output)
    assert (found.state, found.last_kept, found.got_worse) == ("undecided", "2026-12-05", True)
    assert run(["audit", out.output]) == 0
    said = capsys.readouterr().out
    assert "got worse; last shown kept on 2026-12-05: bad share 0.571 over the last 70 audits" in said
    assert "promise kept" not in said


def test_one_night_is_told_and_suspends_nothing(audited: Audited) -> None:
    """Whether all nights to come are so, one night cannot tell, however many of its masks are audited."""
    out = audited()
    out.answer(out.label(60), "rejected")
    found = only(out.output)
    assert (found.state, found.nights) == ("undecided", 1)
    assert in_words(found).startswith("worse than promised: bad share 1 over the last 60 audits (2026-11-23)")
    assert suspend_broken(out.output, [found]) == []


def test_all_skipped_shows_nothing(audited: Audited, capsys: Any) -> None:
    out = audited()
    out.answer(out.label_nights(10, 10), "skipped")
    found = only(out.output)
    assert (found.state, found.audited, found.skipped, found.estimate) == ("undecided", 0, 100, None)
    assert (found.lower, found.upper, found.upper_with_skips) == (0, 1, 1)
    assert run(["audit", out.output]) == 0
    assert "100 of 100; nothing is known of the bad share" in capsys.readouterr().out


def test_masks_of_runs_without_an_audit_are_told_apart(audited: Audited, capsys: Any) -> None:
    out = audited()
    out.label(7, audit=False, inclusion_probability=0.0)
    assert (only(out.output).unwatched, only(out.output).estimate) == (7, None)
    assert run(["audit", out.output]) == 0
    assert "7 had no chance to be drawn" in capsys.readouterr().out


def test_a_clock_set_back_puts_masks_among_those_of_the_day_it_showed(audited: Audited) -> None:
    """Late, out of order, twice and changed: what counts is when a mask was labelled, and its last answer."""
    out = audited()
    first, second = out.label_nights(1, 4), out.label_nights(1, 4)
    out.answer(second, "accepted")
    assert (only(out.output).audited, only(out.output).held_back) == (0, 4)
    out.answer(first, "rejected")
    out.answer(first, "accepted")
    out.answer(first, "accepted")
    assert (only(out.output).audited, only(out.output).nights, only(out.output).bad) == (8, 2, 0)
    late = out.label(2, labeled_at=first[0].labeled_at)
    found = only(out.output)
    assert (found.audited, found.held_back, found.nights) == (0, 8, 0)
    out.answer(late, "rejected")
    assert (only(out.output).audited, only(out.output).nights, only(out.output).bad) == (10, 2, 2)


def test_a_night_is_not_what_is_promised(audited: Audited, capsys: Any) -> None:
    """Of 50 masks, each bad with 4%, more than 5% are with probability 0.32: three or more."""
    out = audited(BadFraction(0.7, 0.05))
    rows = out.label_nights(1, 50)
    out.answer(rows[:2], "rejected")
    out.answer(rows[2:], "accepted")
    assert only(out.output).night_above == pytest.approx(0.3233, abs=1e-4)
    run(["audit", out.output])
    assert "a night of 50 would be above 0.05 by chance with probability 0.32" in capsys.readouterr().out


def test_each_certificate_has_an_audit_of_its_own(audited: Audited, capsys: Any) -> None:
    """One camera's promise is broken, the other's is kept, and an open audit of one holds back no other."""
    out = audited(cameras=2)
    for night in range(12):
        for camera, verdict in (("cam0", "accepted"), ("cam1", "rejected")):
            out.night = night
            rows = [out.label(1, image_uri=f"/bucket/{camera}/{night}-{n}.jpg")[0] for n in range(4)]
            if (camera, night) != ("cam1", 11):
                out.answer(rows, verdict)
    first, second = audit_output(out.output).found
    assert (first.group, first.state, first.audited, first.open) == ("cam0", "kept", 48, 0)
    assert (second.group, second.state, second.audited, second.open) == ("cam1", "broken", 44, 4)
    assert in_words(second).startswith("group cam1: BROKEN: bad share 1 (44 bad of 44)")
    assert run(["audit", out.output]) == 3
    assert "about group cam1 is broken" in capsys.readouterr().err
    assert policies.suspended_groups(out.output, out.policy) == {"cam1"}
    assert not policies.is_suspended(out.output, out.policy.policy_id)
    assert [found.suspended for found in audit_output(out.output).found] == [False, True]
    routed = decide(out.rows(1, image_uri="/bucket/cam0/a.jpg", class_confidences=[1.0]), rules_of(out))
    held = decide(out.rows(1, image_uri="/bucket/cam1/a.jpg", class_confidences=[1.0]), rules_of(out))
    assert [(row.decision, row.reason) for row in (*routed, *held)] == [
        ("accepted", "confident"),
        ("review", "suspended"),
    ]


def test_a_mask_is_audited_under_the_certificate_it_was_accepted_by_whatever_its_bucket_is_called(
    audited: Audited,
) -> None:
    out = audited(cameras=2)
    rows = [out.label(1, image_uri=f"s3://cam1-archive/in/cam0_{n}.jpg")[0] for n in range(4)]
    out.answer(rows, "accepted")
    assert [(found.group, found.audited) for found in audit_output(out.output).found] == [
        ("cam0", 4),
        ("cam1", 0),
    ]


def test_a_group_that_first_comes_on_a_later_night_disturbs_no_audit(audited: Audited) -> None:
    """Its masks have no certificate and go to review; what people say of them is about no promise."""
    out = audited(cameras=1)
    rows = [one for n in range(40) for one in out.label(1, image_uri=f"/bucket/cam0/{n}.jpg")]
    out.answer(rows, "accepted")
    before = only(out.output)
    out.night += 1
    values = {
        "decision": "review",
        "reason": "uncertified_group",
        "audit": False,
        "inclusion_probability": 1.0,
    }
    new = [out.label(1, image_uri=f"/bucket/cam7/{n}.jpg", **values)[0] for n in range(10)]
    out.answer(new[:5], "rejected")
    assert only(out.output) == before
    assert (before.group, before.state, before.audited) == ("cam0", "kept", 40)


def test_a_promise_about_groups_is_audited_as_one(audited: Audited) -> None:
    """Two videos: 900 frames that are good, 10 of them audited, and 100 that are bad, 10 of them audited.

    Of the masks a tenth is bad; of a random image of a random video a half.
    """
    pattern = r"video\d"
    for about, expected in (("groups", 0.5), ("masks", 0.1)):
        out = audited(
            promises_about=about, group_by=pattern, created_at=f"2026-11-22T00:00:0{len(about)}+00:00"
        )
        out.n_parts, out.n_reviews, out.n_rows = (100, 100, 5000) if about == "masks" else (0, 0, 0)
        for video, frames, verdict in (("video1", 900, "accepted"), ("video2", 100, "rejected")):
            share = 10 / frames
            for number, n in enumerate((10, frames - 10)):
                drawn = number == 0
                rows = [
                    replace(row, image_uri=f"/{video}/{row.image_uri.rpartition('/')[2]}")
                    for row in out.rows(n, audit=drawn, inclusion_probability=share)
                ]
                out.commit(rows)
                out.answer(rows if drawn else [], verdict)
        found = next(one for one in audit_output(out.output).found if one.policy_id == out.policy.policy_id)
        assert found.each_counts == about
        assert found.estimate == pytest.approx(expected)


def in_folder(out: AuditedOutput, folder: str, name: str, n: int, **values: Any) -> list[Row]:
    """n more rows of images FOLDER/NAME_NUMBER.jpg, committed."""
    rows = out.rows(n, **values)
    return out.commit(
        [replace(row, image_uri=f"{folder}/{name}_{row.image_uri.rpartition('/')[2]}") for row in rows]
    )


def test_groups_are_found_in_the_path_below_source_as_they_were_when_calibrating(audited: Audited) -> None:
    """Of the masks a tenth is bad, of a random image of a random video a half; the folder has a _ as well."""
    out = audited(promises_about="groups", group_by="^[^_]+")
    out.planned("/lake/my_set")
    for video, frames, verdict in (("v1", 900, "accepted"), ("v2", 100, "rejected")):
        share = 10 / frames
        out.answer(in_folder(out, "/lake/my_set", video, 10, inclusion_probability=share), verdict)
        in_folder(out, "/lake/my_set", video, frames - 10, audit=False, inclusion_probability=share)
    found = only(out.output)
    assert (found.each_counts, found.uncovered) == ("groups", 0)
    assert found.estimate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"group_by": "^[^_]+"}, "pattern '^[^_]+' surely finds"),
        ({"group_by": r"seq\d"}, r"pattern 'seq\d' surely finds"),
        ({"n_images": 300}, "groups.csv named"),
    ],
)
def test_what_counts_groups_is_never_audited_by_masks(
    audited: Audited, policy: dict[str, Any], said: str
) -> None:
    """All masks of five nights are bad, and nothing tells which groups they belong to."""
    out = audited(promises_about="groups", **policy)
    for _ in range(5):
        out.answer(in_folder(out, "/lake/my_set", "v1", 20, inclusion_probability=1.0), "rejected")
        out.night += 1
    found = only(out.output)
    assert (found.state, found.uncovered, found.accepted, found.audited) == ("undecided", 100, 100, 0)
    assert suspend_broken(out.output, [found]) == []
    assert in_words(found).startswith("not covered")
    line = uncovered_in_words(found)
    assert line is not None
    assert line.startswith("100 of 100 accepted masks, such as /lake/my_set/v1_0000.jpg, are of no group")
    assert said in line
    assert line in audit_report([found])
    assert not policies.is_suspended(out.output, out.policy.policy_id)


def test_a_name_that_the_pattern_does_not_end_on_is_of_no_group_and_stops_no_audit(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_groups, "LONGEST_SEARCH", 0.02)
    out = audited(promises_about="groups", group_by=r"(v\d)|(a|a)*!")
    out.planned("/lake")
    out.answer(in_folder(out, "/lake", "v1", 40, inclusion_probability=1.0), "accepted")
    for folder in ("/lake", "/elsewhere"):
        in_folder(out, folder, "a" * 60, 1, audit=False)
    found = only(out.output)
    assert (found.uncovered, found.audited, found.state) == (2, 40, "kept")


def test_masks_of_no_group_count_for_nothing_beside_those_of_one(audited: Audited) -> None:
    out = audited(promises_about="groups", group_by=r"v\d")
    out.answer(in_folder(out, "/lake", "v1", 40, inclusion_probability=1.0), "accepted")
    out.answer(in_folder(out, "/lake", "yard", 40, inclusion_probability=0.5), "rejected")
    found = only(out.output)
    assert (found.uncovered, found.audited, found.estimate, found.state) == (40, 40, 0, "kept")
