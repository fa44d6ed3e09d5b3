"""What the audit says of promises about classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from audited_output import AuditedOutput
from scipy.stats import binom

from segpipe.cli import run
from segpipe.confidence.class_share import BETS, Seen, answers_needed, lower_bound, proves, upper_bound
from segpipe.confidence.class_test import ClassPromiseKind, p_value
from segpipe.confidence.policy import ClassesOnly, ClassPromise
from segpipe.manifests import policies
from segpipe.manifests.schema import Row
from segpipe.review.audit import audit_output
from segpipe.review.audit_words import in_words
from segpipe.review.class_audit import ClassAudit
from segpipe.review.class_audit_words import class_in_words

Audited = Callable[..., AuditedOutput]


def promise(kind: ClassPromiseKind = "miss", share: float = 0.1, min_object_px: int = 3) -> ClassPromise:
    return ClassPromise(kind, "b", 1, share, min_object_px, 100, 0, p_value(0, 100, share), 0)


def only(output: str) -> ClassAudit:
    (found,) = audit_output(output).found
    (of_class,) = found.classes
    return of_class


def label(
    out: AuditedOutput, n: int, shown: int, decision: str = "accepted", share: float = 0.5
) -> list[Row]:
    """n masks of 10x10 pixels of which `shown` are of class b."""
    values: dict[str, Any] = {"image_width": 10, "image_height": 10, "decision": decision}
    values["class_fractions"] = [1 - shown / 100, shown / 100]
    accepted = decision == "accepted"
    values |= {"audit": accepted and share > 0, "inclusion_probability": share if accepted else 1.0}
    values["reason"] = "confident" if accepted else "low_confidence"
    return out.label(n, **values)


def correct(out: AuditedOutput, rows: list[Row], true: int) -> None:
    """People say that `true` pixels are of class b, and one was erased."""
    out.answer(rows, "corrected", 0.9, 0.9, [99 - true, true])


@pytest.mark.parametrize(
    ("kind", "audited_images", "wrong", "hidden", "reviewed"),
    [("miss", 3, 1, 2, 2), ("false_alarm", 2, 1, 1, 1)],
)
def test_counted_is_what_calibration_counts(
    audited: Audited, kind: ClassPromiseKind, audited_images: int, wrong: int, hidden: int, reviewed: int
) -> None:
    out = audited(class_promises=(promise(kind),))
    correct(out, label(out, 1, shown=2), true=3)  # has it, and less than an object is shown: missed
    correct(out, label(out, 1, shown=3), true=40)  # wherever it is shown
    correct(out, label(out, 1, shown=0), true=2)  # less than an object
    correct(out, label(out, 1, shown=3), true=0)  # false alarm, also if it was only erased
    out.answer(label(out, 1, shown=7), "accepted")  # also by a version that counted no pixels
    out.answer(label(out, 2, shown=0), "skipped")  # could be a miss, no false alarm
    out.answer(label(out, 1, shown=9), "rejected")  # the other way round
    correct(out, label(out, 2, shown=0, decision="review"), true=5)
    correct(out, label(out, 1, shown=0, decision="review"), true=0)
    out.answer(label(out, 1, shown=0, decision="review"), "skipped")
    label(out, 4, shown=0, decision="review")
    found = only(out.output)
    assert (found.audited, found.wrong, found.hidden) == (audited_images, wrong, hidden)
    assert (found.reviewed, found.unseen) == (reviewed, 5)
    # Each audited image stands for two, one in review for itself.
    assert found.estimate == pytest.approx(wrong * 2 / (audited_images * 2 + reviewed))
    assert found.lower < found.estimate < found.upper
    assert found.state == "undecided"


def test_enough_images_with_the_class_show_the_promise_kept(audited: Audited, capsys: Any) -> None:
    """The error of each end, 0.05, is shared by two promises, and half of that is for the first window.

    Without a wrong image three gamblers' capital must reach 80, and each image brings the boldest 11%:
    (1.11^n + 1.0556^n + 1.0222^n) / 3 is 74.6 after 51 and 82.8 after 52.
    """
    out = audited(class_promises=(promise(),))
    needed = answers_needed(0, 0.1, 0.0125)
    assert needed == 52
    correct(out, label(out, 500, shown=0, share=1.0), true=0)
    correct(out, label(out, 51, shown=10, share=1.0), true=10)
    found = only(out.output)
    assert (found.state, found.audited, found.upper < 0.11) == ("undecided", 51, True)
    assert found.more_needed == 1
    assert "1 more audited images with 'b' like these would show it kept" in class_in_words(found)
    correct(out, label(out, 1, shown=10, share=1.0), true=10)
    found = only(out.output)
    assert (found.state, found.more_needed) == ("kept", None)
    assert run(["audit", out.output]) == 0
    said = capsys.readouterr().out
    assert "miss b   promise kept over the last 52 audited images with 'b' (2026-11-23): of all such" in said
    assert json.loads(json_of(out.output, capsys))[0]["classes"][0]["kept_over"]["audited"] == 52


def test_images_of_unlike_shares_name_no_number_that_would_do(audited: Audited) -> None:
    out = audited(class_promises=(promise(),))
    for share in (0.9, 0.3):
        correct(out, label(out, 25, shown=10, share=share), true=10)
    found = only(out.output)
    assert (found.state, found.more_needed) == ("undecided", None)
    assert class_in_words(found).startswith("not yet enough: ")
    assert "more audited" not in class_in_words(found)


def json_of(output: str, capsys: Any) -> str:
    run(["audit", output, "--json"])
    return str(capsys.readouterr().out)


def test_what_review_has_is_no_proof_of_what_was_accepted(audited: Audited) -> None:
    """Of 300 images with the class in review each counts a fiftieth of an audited one: those accepted had
    one chance in fifty to be seen, and none was."""
    out = audited(class_promises=(promise(),))
    correct(out, label(out, 30, shown=0, share=0.02), true=0)
    correct(out, label(out, 300, shown=9, decision="review"), true=9)
    found = only(out.output)
    assert (found.audited, found.reviewed, found.estimate, found.state) == (0, 300, 0, "undecided")
    assert found.upper > 0.3


def test_missed_classes_suspend_the_policy_although_hardly_a_mask_is_bad(
    audited: Audited, capsys: Any
) -> None:
    """2% of the images have the class, all of them are accepted without it."""
    out = audited(class_promises=(promise(),))
    for _ in range(12):
        out.night += 1
        out.answer(label(out, 98, shown=0, share=1.0), "accepted")
        correct(out, label(out, 2, shown=0, share=1.0), true=10)
    (found,) = audit_output(out.output).found
    assert (found.state, found.bad, found.classes[0].state) == ("broken", 0, "broken")
    assert in_words(found).startswith("BROKEN: share accepted without it 1 (24 of 24 audited images with 'b'")
    assert run(["audit", out.output]) == 3
    assert policies.is_suspended(out.output, out.policy.policy_id)
    assert "bad share" not in in_words(found)
    capsys.readouterr()


def test_what_waits_in_review_could_have_the_class_and_suspends_nothing(audited: Audited) -> None:
    """As above, but for 40 unanswered masks in review a night: if all have the class, 2 of 42 are missed."""
    out = audited(class_promises=(promise(),))
    for _ in range(12):
        out.night += 1
        out.answer(label(out, 98, shown=0, share=1.0), "accepted")
        correct(out, label(out, 2, shown=0, share=1.0), true=10)
        label(out, 40, shown=0, decision="review")
    found = only(out.output)
    assert (found.state, found.unseen, found.wrong) == ("undecided", 480, 24)
    assert found.lower < 0.1 < found.upper
    assert "480 masks in review are not answered: any could be such" in class_in_words(found)


@pytest.mark.parametrize("reason", ["drift", "suspended", "uncertified_group"])
def test_masks_that_the_policy_did_not_send_to_review_do_not_count(audited: Audited, reason: str) -> None:
    out = audited(class_promises=(promise(),))
    rows = out.label(
        3, decision="review", reason=reason, audit=False, inclusion_probability=1.0,
        class_fractions=[0.5, 0.5], image_width=10, image_height=10,
    )  # fmt: skip
    correct(out, rows[:1], true=50)
    found = only(out.output)
    assert (found.reviewed, found.unseen, found.estimate) == (0, 0, None)


def test_masks_of_runs_without_an_audit_do_not_count(audited: Audited) -> None:
    """Else what such a run sent to review would stand against misses that nobody could see."""
    out = audited(class_promises=(promise(),))
    label(out, 5, shown=0, share=0.0)
    correct(out, label(out, 3, shown=5, decision="review"), true=5)
    assert (only(out.output).reviewed, only(out.output).estimate) == (0, None)


def test_a_correction_of_a_version_that_counted_no_classes_shows_nothing(audited: Audited) -> None:
    out = audited(class_promises=(promise(),))
    out.answer(label(out, 60, shown=0, share=1.0), "corrected", 0.9)
    found = only(out.output)
    assert (found.audited, found.hidden, found.state, found.estimate) == (0, 60, "undecided", None)
    assert "not yet enough: no audited image with 'b' is known" in class_in_words(found)


@pytest.mark.parametrize(("shown", "hidden"), [(0, 60), (10, 0)])
def test_all_skipped_shows_nothing(audited: Audited, shown: int, hidden: int) -> None:
    """What shows the class cannot miss it, but nobody says that it should."""
    out = audited(class_promises=(promise(),))
    out.answer(label(out, 60, shown=shown, share=1.0), "skipped")
    found = only(out.output)
    assert (found.audited, found.hidden, found.estimate, found.upper) == (0, hidden, None, 1)
    assert found.state == "undecided"


def test_a_promise_that_counts_groups_once_is_said_not_to_be_covered(audited: Audited) -> None:
    out = audited(class_promises=(promise(),), promises_about="groups", group_by=r"\d+", n_images=300)
    correct(out, label(out, 60, shown=0, share=1.0), true=10)
    (found,) = audit_output(out.output).found
    assert (found.classes[0].state, found.classes[0].audited, found.state) == ("not_covered", 0, "kept")
    assert "--promise-about masks" in class_in_words(found.classes[0])


def test_classes_alone_are_promised_and_audited(audited: Audited) -> None:
    out = audited(class_promises=(promise(),), promised=ClassesOnly(), p_value=p_value(0, 100, 0.1))
    correct(out, label(out, 60, shown=10, share=1.0), true=10)
    (found,) = audit_output(out.output).found
    assert (found.state, found.target) == ("kept", "classes")
    assert "what is promised of classes follows" in in_words(found)


def test_images_of_different_chances_prove_it_as_rarely_as_stated() -> None:
    """Half of 400 images are seen by a chance of 0.5, half by 0.05; a tenth of all is wrong, and of the
    rarely seen ones nearly a fifth. In at most 5% of the draws may they prove that no more than a tenth is.
    """
    random, draws = np.random.default_rng(0), 1500
    chances = np.repeat([0.5, 0.05], 200)
    wrong = np.arange(400) % 200 < np.repeat([4, 36], 200)
    proven, too_low, too_high = 0, 0, 0
    for number in range(draws):
        drawn = random.random(400) < chances
        seen = Seen(chances[drawn], wrong[drawn], np.ones(drawn.sum(), int), 0.05)
        proven += proves(seen, 0.1, 0.05)
        if number < 300:
            too_low += upper_bound(seen, 0.05) < 0.1
            too_high += lower_bound(seen, 0.05) > 0.1
    assert proven <= binom.isf(0.001, draws, 0.05)
    assert max(too_low, too_high) <= binom.isf(0.001, 300, 0.05)


def test_without_an_image_nothing_is_known() -> None:
    nothing = Seen(np.empty(0), np.empty(0, bool), np.empty(0, int), 1.0)
    assert (nothing.share, upper_bound(nothing, 0.05), lower_bound(nothing, 0.05)) == (None, 1.0, 0.0)
    assert answers_needed(0.095, 0.1, 0.05) is None


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.08])
def test_so_many_answers_are_the_fewest_that_prove_it(share: float) -> None:
    """As if a share of an image could be wrong: what each such image brings is the mean of both cases."""
    needed = answers_needed(float(share), 0.1, 0.05)
    assert needed is not None
    gain = (1 - share) * np.log1p(BETS / 9) + share * np.log1p(-BETS)
    capital = [float(np.exp(n * gain).mean()) for n in (needed - 1, needed)]
    assert capital[0] < 20 <= capital[1] * (1 + 1e-9)
