"""What reviews of drawn masks make of a certificate that grows, and what stops it."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from growing_output import GrowingOutput, growing_output, growing_policy

from segpipe import storage
from segpipe.cli import run
from segpipe.confidence.growing import Draws, loosest_proven
from segpipe.confidence.policy import ClassGuard, Policy, sealed, to_json
from segpipe.confidence.promise import promise
from segpipe.config import VerifySettings
from segpipe.errors import NotFoundError, PolicyError, StorageError
from segpipe.manifests import findings, policies
from segpipe.manifests.policies import grown_numbers, nearest_policy, read_grown
from segpipe.manifests.verification import verify
from segpipe.review.audit import audit_output
from segpipe.review.recalibration import Recalibration, in_words, ratio_in_words, recalibrate


@pytest.fixture
def out(tmp_path: Path) -> GrowingOutput:
    return growing_output(str(tmp_path / "out"))


def only(out: GrowingOutput) -> Recalibration:
    (found,) = recalibrate(out.output).found
    return found


def prove(out: GrowingOutput, n: int = 60, score: float = 0.5) -> None:
    """n good masks at a score that calibration does not accept, and bad ones below."""
    good = out.drawn(n, score)
    bad = out.drawn(3, 0.1)
    out.said(good, bad=False)
    out.said(bad, bad=True)


def labelled_by_another_model(out: GrowingOutput, created_at: str = "2026-11-22T00:00:00+00:00") -> Policy:
    other = sealed(replace(out.policy, model_id="b" * 12, created_at=created_at))
    policies.keep_policy(out.output, other.policy_id, to_json(other))
    out.drawn(1, 0.9, model_id=other.model_id, policy_id=other.policy_id)
    return other


def loosest_of(out: GrowingOutput, score: float) -> float:
    """The loosest threshold of the grid that lets nothing of a lower score pass."""
    assert out.policy.growth is not None
    return min(one for one in out.policy.growth.thresholds if one > score)


def test_answers_loosen_the_threshold_and_the_next_policy_says_what_it_rests_on(out: GrowingOutput) -> None:
    prove(out)
    found = only(out)
    grown = read_grown(out.output, out.policy, 1)
    assert grown.growth is not None
    assert out.policy.threshold == pytest.approx(0.5254, abs=1e-4)
    assert (found.written, found.number, found.policy_id) == (True, 1, grown.policy_id)
    assert (found.threshold_before, found.threshold) == (out.policy.threshold, grown.threshold)
    scores, bad = np.repeat([0.5, 0.1], [60, 3]), np.repeat([False, True], [60, 3])
    none = np.zeros(63, bool)
    looser = [one for one in out.policy.growth.thresholds if one < out.policy.threshold]
    expected = loosest_proven(Draws(scores, bad, np.full(63, 0.02), none, none), looser, 0.1, 0.9, 0.02)
    # At 0.1 the capital had been high enough before the first bad one came.
    assert grown.threshold == expected == min(out.policy.growth.thresholds)
    assert (found.drawn, found.counted, found.open, found.skipped, found.withdrawn) == (63, 63, 0, 0, 0)
    assert nearest_policy(out.output, out.policy) == grown


def test_bad_masks_below_keep_the_thresholds_below_from_being_proven(out: GrowingOutput) -> None:
    for _ in range(15):
        good, bad = out.drawn(5, 0.5), out.drawn(2, 0.1)
        out.said(good, bad=False)
        out.said(bad, bad=True)
    found = only(out)
    assert found.threshold == loosest_of(out, 0.1)
    assert found.next_threshold is not None
    assert found.next_threshold <= 0.1
    assert found.capital is not None
    assert 1 <= found.capital < found.needed == pytest.approx(20)


def test_nothing_new_writes_nothing_and_says_so(out: GrowingOutput, capsys) -> None:
    prove(out)
    assert only(out).written
    before = sorted(one.key for one in storage.list_objects(out.output))
    assert not only(out).written
    assert sorted(one.key for one in storage.list_objects(out.output)) == before
    assert run(["recalibrate", out.output]) == 0
    assert "nothing new is proven, and nothing was written" in capsys.readouterr().out


def test_without_an_answer_calibrations_policy_stays(out: GrowingOutput) -> None:
    out.drawn(5, 0.9)
    found = only(out)
    assert (found.written, found.number, found.counted, found.open) == (False, 0, 0, 5)
    assert found.oldest_open == "/bucket/0000.jpg"


def test_draws_count_up_to_the_oldest_open_one_and_then_in_one_order_whenever_they_were_answered(
    out: GrowingOutput,
) -> None:
    first, others = out.drawn(1, 0.5), out.drawn(120, 0.5)
    out.said(list(reversed(others)), bad=False)
    waiting = only(out)
    assert (waiting.counted, waiting.held_back, waiting.written) == (0, 120, False)
    assert waiting.oldest_open == first[0].image_uri
    out.said(first, bad=True, reviewed_at=first[0].labeled_at.replace(year=2020))  # a clock set back
    found = only(out)
    assert (found.counted, found.held_back, found.written) == (121, 0, True)
    evidence = read_grown(out.output, out.policy, 1).growth.evidence
    capital = [np.log((1 - bet) * (1 + bet / 9) ** 120) for bet in (0.9, 0.6, 0.4, 0.25, 0.12, 0.06)]
    assert evidence.log_capital == pytest.approx(np.log(np.mean(np.exp(capital))))


def test_an_answer_that_comes_twice_counts_once(out: GrowingOutput) -> None:
    rows = out.drawn(30, 0.5)
    out.said(rows, bad=False)
    out.said(rows, bad=False, **out.later(2))
    assert (only(out).counted, only(out).written) == (30, False)  # 60 would prove it


def test_changed_answers_take_back_what_they_had_proven(out: GrowingOutput) -> None:
    rows = out.drawn(60, 0.5)
    out.said(rows, bad=False)
    assert only(out).written
    out.said(rows[:8], bad=True, **out.later(2))
    found = only(out)
    assert (found.written, found.number) == (True, 2)
    assert found.threshold == out.policy.threshold
    assert "STRICTER, because answers were changed" in in_words(found)
    assert nearest_policy(out.output, out.policy).threshold == out.policy.threshold


def missing_answers(out: GrowingOutput) -> list[str]:
    """What verification says of answers that are gone, beside all else: these masks are nowhere."""
    found = verify(out.output, VerifySettings(masks=0)).examples
    return [f"{one.place}: {one.what}" for one in found if one.kind == "review"]


@pytest.fixture
def all_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "EXAMPLES", 10_000)


@pytest.mark.usefixtures("all_findings")
def test_answers_that_are_taken_away_are_missed_also_after_more_have_come(out: GrowingOutput) -> None:
    rows = out.drawn(60, 0.5)
    out.said(rows, bad=False)
    assert only(out).written
    out.said(out.drawn(100, 0.5), bad=False, **out.later(2))
    assert missing_answers(out) == []
    storage.delete(storage.join(out.output, "reviews/00000001.parquet"))
    (said,) = missing_answers(out)
    assert said.startswith(f"policies/{out.policy.policy_id}, number 1: the policy stands on 60 answers, 0 ")
    found = only(out)
    assert (found.number, found.threshold) == (2, out.policy.threshold)
    assert "STRICTER, because answers were changed or are gone (segpipe verify)" in in_words(found)
    assert len(missing_answers(out)) == 1
    out.said(rows, bad=False, **out.later(3))
    assert missing_answers(out) == []


@pytest.mark.usefixtures("all_findings")
def test_of_a_policy_that_does_not_say_up_to_when_all_answers_count(out: GrowingOutput) -> None:
    out.said(out.drawn(60, 0.5), bad=False)
    only(out)
    uri = policies.grown_uri(out.output, out.policy.policy_id, 1)
    grown = read_grown(out.output, out.policy, 1)
    evidence = replace(grown.growth.evidence, until=None)
    old = sealed(replace(grown, growth=replace(grown.growth, evidence=evidence)))
    storage.put(uri, to_json(old).encode())
    assert '"until"' not in to_json(old)
    assert missing_answers(out) == []
    storage.delete(storage.join(out.output, "reviews/00000001.parquet"))
    out.said(out.drawn(59, 0.5), bad=False)
    assert "the policy stands on 60 answers, 59 are there" in missing_answers(out)[0]
    out.said(out.drawn(1, 0.5), bad=False)
    assert missing_answers(out) == []


def test_what_calibration_had_not_proven_is_taken_back_whole(tmp_path: Path) -> None:
    out = growing_output(str(tmp_path / "out"), growing_policy(20))
    assert out.policy.threshold is None
    rows = out.drawn(60, 0.9)
    out.said(rows, bad=False)
    assert only(out).threshold is not None
    out.said(rows[:8], bad=True, **out.later(2))
    assert (only(out).threshold, nearest_policy(out.output, out.policy).threshold) == (None, None)


def test_a_skipped_mask_counts_as_bad_and_a_withdrawn_one_holds_nothing_back(out: GrowingOutput) -> None:
    skipped, gone, rest = out.drawn(2, 0.5), out.drawn(1, 0.5), out.drawn(150, 0.5)
    out.answer(skipped, "skipped")
    out.said(rest, bad=False)
    assert only(out).held_back == 150
    out.drawn(1, 0.5, image_uri=gone[0].image_uri, image_etag="changed", drawn=False)
    found = only(out)
    assert (found.counted, found.skipped, found.withdrawn, found.open) == (152, 2, 1, 0)
    assert read_grown(out.output, out.policy, 1).growth.evidence.bad == 2


def test_what_skips_keep_from_being_proven_is_said_and_a_later_answer_undoes_it(
    out: GrowingOutput, capsys
) -> None:
    """Each skip costs what ten good masks bring."""
    skipped, rest = out.drawn(6, 0.5), out.drawn(54, 0.5)
    out.answer(skipped, "skipped")
    out.said(rest, bad=False)
    found = only(out)
    assert (found.skipped, found.written) == (6, False)
    bets = [0.9, 0.6, 0.4, 0.25, 0.12, 0.06]
    assert found.capital_unskipped == pytest.approx(np.mean([(1 + bet / 9) ** 54 for bet in bets]))
    assert run(["recalibrate", out.output]) == 0
    assert f"{found.capital_unskipped:.4g} were it not for the skipped ones" in capsys.readouterr().out
    out.said(skipped, bad=False, **out.later(2))
    assert (only(out).skipped, only(out).number) == (0, 1)


def test_all_skipped_proves_nothing(out: GrowingOutput) -> None:
    out.answer(out.drawn(100, 0.5), "skipped")
    found = only(out)
    assert (found.counted, found.skipped, found.written, found.capital) == (100, 100, False, 1)
    assert found.capital_unskipped == 1


def test_masks_of_a_drifted_run_and_those_of_others_do_not_count(out: GrowingOutput) -> None:
    others = [
        out.drawn(30, 0.5, decision="review", reason="drift", audit=False),
        out.drawn(30, 0.5, policy_id="another"),
        out.drawn(30, 0.5, drawn=False),
        out.drawn(30, 0.5, drawn=None, draw_probability=None),  # of an earlier version
    ]
    for rows in others:
        out.said(rows, bad=False)
    assert (only(out).drawn, only(out).written) == (0, False)


def test_what_a_guard_holds_back_is_accepted_at_no_threshold(tmp_path: Path) -> None:
    confident = np.full((60, 2), 0.9)
    policy = growing_policy(guards=[ClassGuard("b", 1, 0.5)], class_confidences=confident)
    out = growing_output(str(tmp_path / "out"), policy)
    out.said(out.drawn(60, 0.5, class_confidences=[0.9, 0.4]), bad=False)
    out.said(out.drawn(60, math.nan), bad=False)
    assert (only(out).counted, only(out).written) == (120, False)
    out.said(out.drawn(60, 0.5, class_confidences=[0.9, 0.6]), bad=False)
    assert only(out).written


def test_masks_labelled_under_a_grown_policy_go_on_counting_for_the_family(out: GrowingOutput) -> None:
    for _ in range(15):
        out.said(out.drawn(5, 0.5), bad=False)
        out.said(out.drawn(2, 0.1), bad=True)
    first = only(out)
    root, out.policy = out.policy, nearest_policy(out.output, out.policy)
    out.said(out.drawn(600, 0.1), bad=False)
    out.policy = root
    second = only(out)
    assert (second.number, second.counted) == (2, first.counted + 600)
    assert second.threshold < first.threshold


def test_a_suspended_family_grows_no_more(out: GrowingOutput) -> None:
    prove(out)
    only(out)
    policies.suspend(out.output, out.policy.policy_id, "{}")
    told = recalibrate(out.output)
    assert told.found == []
    assert [line.split(":")[0] for line in told.suspended] == [
        f"policy {out.policy.policy_id} of model {out.policy.model_id} is suspended"
    ]
    assert run(["recalibrate", out.output]) == 1


@pytest.mark.parametrize("day", [21, 23])
def test_a_suspended_family_stops_no_other_models(out: GrowingOutput, capsys, day: int) -> None:
    """Whichever of the two is older."""
    prove(out)
    other = labelled_by_another_model(out, f"2026-11-{day}T00:00:00+00:00")
    policies.suspend(out.output, other.policy_id, "{}")
    assert run(["recalibrate", out.output]) == 1
    printed = capsys.readouterr()
    assert "number 1 is written, looser" in printed.out
    assert printed.err.startswith(
        f"segpipe: policy {other.policy_id} of model {other.model_id} is suspended: "
    )
    assert grown_numbers(out.output, out.policy.policy_id) == [1]


@pytest.mark.parametrize(("file", "text"), [("{root}", b"{"), ("{root}-grown-00000001", b"{}")])
def test_a_damaged_policy_stops_its_own_models_growth_only(
    out: GrowingOutput, capsys, file: str, text: bytes
) -> None:
    prove(out)
    other = labelled_by_another_model(out)
    damaged = storage.join(out.output, f"policies/{file.format(root=other.policy_id)}.json")
    storage.put(damaged, text)
    assert run(["recalibrate", out.output]) == 1
    printed = capsys.readouterr()
    assert "number 1 is written, looser" in printed.out
    assert printed.err.startswith(f"segpipe: the policy of model {other.model_id} cannot grow: {damaged} ")
    assert grown_numbers(out.output, out.policy.policy_id) == [1]
    assert run(["recalibrate", out.output, "--model", out.policy.model_id]) == 0
    assert run(["recalibrate", out.output, "--model", other.model_id]) == 1


@pytest.mark.parametrize("grows", [True, False])
def test_what_may_have_grown_with_a_damaged_policy_is_not_audited(tmp_path: Path, grows: bool) -> None:
    """Masks labelled under the damaged one may be of its family; a policy that does not grow has none."""
    policy = growing_policy() if grows else growing_policy(draw_share=None)
    out = growing_output(storage.normalise(tmp_path / "out"), policy)
    out.label(1)
    out.label(1, policy_id="lost")
    audits = audit_output(out.output)
    (unjudged,) = audits.unjudged
    assert [one.policy_id for one in audits.found] == ([] if grows else [policy.policy_id])
    assert unjudged.policy_ids == (("lost", policy.policy_id) if grows else ("lost",))


def test_where_the_policy_that_others_grew_from_is_damaged_each_is_named_once(out: GrowingOutput) -> None:
    prove(out)
    only(out)
    root = out.policy
    out.policy = nearest_policy(out.output, root)
    policies.keep_policy(out.output, out.policy.policy_id, to_json(out.policy))
    out.label(1)
    storage.put(policies.kept_uri(out.output, root.policy_id), b"{")
    (unjudged,) = audit_output(out.output).unjudged
    assert unjudged.policy_ids == (root.policy_id,)


def test_a_grown_policy_that_is_damaged_is_in_use_and_suspended_with_its_family(out: GrowingOutput) -> None:
    """The newest mask is of the damaged one, the suspension of what it has grown from."""
    out.label(1)
    policies.suspend(out.output, out.policy.policy_id, "{}")
    out.label(1, policy_id="lost")
    (unjudged,) = audit_output(out.output).unjudged
    assert (unjudged.suspended, unjudged.in_use) == ((out.policy.policy_id,), True)
    assert run(["audit", out.output]) == 3


def test_a_damaged_policy_under_which_nothing_was_labelled_is_told_and_stops_none(out: GrowingOutput) -> None:
    prove(out)
    storage.put(policies.kept_uri(out.output, "0" * 12), b"{")
    told = recalibrate(out.output)
    assert [one.number for one in told.found] == [1]
    assert [line.split(" is not JSON")[0] for line in told.failed] == [
        policies.kept_uri(out.output, "0" * 12)
    ]


def test_where_nothing_grows_one_line_says_so(tmp_path: Path, out: GrowingOutput) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        recalibrate(str(tmp_path / "absent"))
    fixed = growing_output(str(tmp_path / "fixed"), growing_policy(draw_share=None))
    fixed.label(1)
    with pytest.raises(NotFoundError, match="grows: calibrate with --grow"):
        recalibrate(fixed.output)
    out.label(1)
    with pytest.raises(NotFoundError, match="no policy of model bbbbbbbbbbbb"):
        recalibrate(out.output, "bbbbbbbbbbbb")
    assert len(recalibrate(out.output, "a" * 12).found) == 1


@pytest.mark.parametrize("day", [21, 23])
def test_a_later_calibration_by_hand_makes_the_earlier_family_moot(out: GrowingOutput, day: int) -> None:
    """Also where a clock was set back, so that it looks older; and while a run of before goes on."""
    prove(out)
    only(out)
    first, again = out.policy, growing_policy(created_at=f"2026-11-{day}T00:00:00+00:00")
    policies.keep_policy(out.output, again.policy_id, to_json(again))
    assert only(out).root == first.policy_id, "nothing is labelled under the other"
    out.policy = again
    out.drawn(1, 0.9, run_id="another")
    found = only(out)
    assert (found.root, found.drawn, found.written) == (again.policy_id, 1, False)
    out.policy = first
    out.drawn(1, 0.9)
    assert only(out).root == again.policy_id
    assert nearest_policy(out.output, again) == again


def test_the_audit_states_what_has_grown_also_where_a_clock_was_set_back(tmp_path: Path) -> None:
    out = growing_output(str(tmp_path / "out"), growing_policy(20, created_at="2999-01-01T00:00:00+00:00"))
    assert out.policy.threshold is None
    out.said(out.drawn(60, 0.9), bad=False)
    only(out)
    out.policy = nearest_policy(out.output, out.policy)
    policies.keep_policy(out.output, out.policy.policy_id, to_json(out.policy))
    (audited,) = audit_output(out.output).found
    assert audited.promise == promise(out.policy)
    assert "nothing is accepted" not in audited.promise


def test_a_kill_before_the_policy_is_there_leaves_all_to_the_next(
    out: GrowingOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(out)

    def killed(*_: object) -> None:
        raise StorageError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "create", killed)
        with pytest.raises(StorageError):
            recalibrate(out.output)
    assert grown_numbers(out.output, out.policy.policy_id) == []
    assert only(out).number == 1


def test_of_two_recalibrations_at_once_one_reads_again(
    out: GrowingOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is about to write number 1, another writes it, and then an answer is changed."""
    rows = out.drawn(60, 0.5)
    out.said(rows, bad=False)
    create, others = policies.create_grown, []

    def quicker(output: str, policy: object) -> bool:
        if not others:
            others.append("at work")
            only(out)
            out.said(rows[:8], bad=True, **out.later(2))
        return create(output, policy)  # type: ignore[arg-type]

    monkeypatch.setattr(policies, "create_grown", quicker)
    found = only(out)
    assert (found.number, found.threshold) == (2, out.policy.threshold)
    assert grown_numbers(out.output, out.policy.policy_id) == [1, 2]


def test_many_recalibrations_at_once_in_a_bucket_write_one_policy(s3_bucket: str) -> None:
    out = growing_output(f"s3://{s3_bucket}/out")
    prove(out)
    with ThreadPoolExecutor(4) as pool:
        found = [one for told in pool.map(recalibrate, [out.output] * 4) for one in told.found]
    assert sum(one.written for one in found) == 1
    assert grown_numbers(out.output, out.policy.policy_id) == [1]
    assert {one.policy_id for one in found} == {read_grown(out.output, out.policy, 1).policy_id}


def test_a_grown_policy_that_was_edited_or_exchanged_is_refused_by_name(out: GrowingOutput) -> None:
    prove(out)
    only(out)
    uri = policies.grown_uri(out.output, out.policy.policy_id, 1)
    text = storage.read_bytes(uri)
    other = growing_policy(created_at="2026-11-20T00:00:00+00:00")
    storage.put(policies.grown_uri(out.output, other.policy_id, 1), text)
    with pytest.raises(PolicyError, match=f"has not grown from {other.policy_id} as number 1"):
        nearest_policy(out.output, other)
    storage.put(uri, text.replace(b'"accepted": 29', b'"accepted": 30'))
    with pytest.raises(PolicyError, match=r"-grown-00000001.json was edited.*run segpipe recalibrate"):
        nearest_policy(out.output, out.policy)


def test_reviewers_who_leave_wrong_what_they_would_not_have_drawn_are_told_by_the_ratio(
    out: GrowingOutput,
) -> None:
    """With the draft 20 of 800 are found bad, from scratch 40 of 200: eight times as often."""
    drafted, scratch = out.drawn(800, 0.9), out.drawn(200, 0.9, from_scratch=True)
    out.said(drafted[:20], bad=True)
    out.said(drafted[20:], bad=False)
    out.said(scratch[:40], bad=True, from_scratch=True)
    out.said(scratch[40:], bad=False, from_scratch=True)
    found = only(out)
    assert found.ratio == pytest.approx(8)
    assert found.ratio_lower > 4
    assert found.ratio_applies
    assert not found.written
    assert "8.00, between" in ratio_in_words(found)


def test_the_command_prints_lines_for_people_and_fields_for_programs(out: GrowingOutput, capsys) -> None:
    prove(out)
    assert run(["recalibrate", out.output, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["number"], told["written"], told["root"]) == (1, True, out.policy.policy_id)
    assert (told["ratio"], told["ratio_upper"], told["ratio_applies"]) == (None, None, False)
    assert run(["recalibrate", out.output, "--model", "a" * 12]) == 0
    shown = capsys.readouterr().out
    assert "63 masks, 63 count" in shown
    assert "unknown: it takes a bad mask and answers of both kinds" in shown
    assert f"grown from {out.policy.policy_id}" in shown


def test_what_is_still_to_be_proven_is_said_in_digits_that_people_read(out: GrowingOutput, capsys) -> None:
    good, bad = out.drawn(3, 0.12345678901), out.drawn(1, 0.05)
    out.said(good, bad=False)
    out.said(bad, bad=True)
    assert run(["recalibrate", out.output]) == 0
    (following,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next"))
    assert re.fullmatch(r"next +score -?0\.\d{1,7}: evidence of 1(\.\d{1,3})? of 20 needed", following)


def test_a_mask_of_a_policy_with_no_draft_shown_to_this_version_counts_as_drafted(out: GrowingOutput) -> None:
    rows = out.drawn(60, 0.5, from_scratch=True)
    out.said(rows, bad=False, from_scratch=False)
    only(out)
    evidence = read_grown(out.output, out.policy, 1).growth.evidence
    assert (evidence.answered_with_draft, evidence.answered_from_scratch) == (60, 0)


def test_a_changed_policy_is_none_of_the_family(out: GrowingOutput) -> None:
    prove(out)
    only(out)
    grown = read_grown(out.output, out.policy, 1)
    assert policies.policy_of_run(out.output, out.policy, grown.policy_id) == grown
    assert policies.policy_of_run(out.output, out.policy, "0" * 12) is None
    assert policies.policy_of_run(out.output, replace(out.policy, growth=None), grown.policy_id) is None
