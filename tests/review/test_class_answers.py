"""What masks in review that a queue has drawn at random tell of those that nobody has answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audited_output import NOON, AuditedOutput
from scipy.stats import binom

from segpipe import storage
from segpipe.confidence.class_test import p_value
from segpipe.confidence.confidence_sequence import p_values_above
from segpipe.confidence.policy import ClassPromise
from segpipe.config import QueueSettings
from segpipe.manifests.queues import read_selected
from segpipe.manifests.schema import Row
from segpipe.manifests.views import open_views
from segpipe.review.audit import audit_output
from segpipe.review.class_answers import read_class_answers
from segpipe.review.class_audit import ClassAudit, ClassNight, class_bets, class_nights
from segpipe.review.class_audit_words import class_in_words
from segpipe.review.queue import take_queue

PROMISE = ClassPromise("miss", "b", 1, 0.1, 3, 100, 0, p_value(0, 100, 0.1), 0)
Uris = set[str]


@pytest.fixture
def out(audited: Callable[..., AuditedOutput]) -> AuditedOutput:
    """Of images with class b at most a tenth are to be accepted without it."""
    return audited(class_promises=(PROMISE,))


REVIEW: dict[str, Any] = {
    "decision": "review", "reason": "low_confidence", "audit": False, "inclusion_probability": 1.0,
    "image_width": 10, "image_height": 10, "class_fractions": [1.0, 0.0],
}  # fmt: skip
AUDIT = REVIEW | {"decision": "accepted", "reason": "confident", "audit": True}


def in_review(out: AuditedOutput, n: int, **values: Any) -> list[Row]:
    """n masks of 10x10 pixels without class b, in a part of their own."""
    return out.label(n, **(REVIEW | values))


def audits(out: AuditedOutput, n: int, *, missed: bool) -> None:
    """n audits of accepted images with the class, shown or missed; as many again were not drawn."""
    shown = 0.0 if missed else 0.1
    values = AUDIT | {"inclusion_probability": 0.5, "class_fractions": [1 - shown, shown]}
    say(out, out.label(n, **values), has_class=True)


def say(out: AuditedOutput, rows: list[Row], *, has_class: bool) -> None:
    out.answer(rows, "corrected", 0.9, 0.9, [90, 10] if has_class else [100, 0])


def pushed(out: AuditedOutput, limit: int, share: float = 0.5) -> tuple[Uris, Uris]:
    """The images that one more queue has drawn at random and chosen by their order."""
    number = read_selected(out.output).next_number
    taken = take_queue(out.output, QueueSettings(limit=limit, random_share=share))
    selection = read_selected(out.output).selections[number]

    def uris(items: Any) -> Uris:
        return {item.image_uri for item in taken.items if item.item_id in items}

    return uris(selection.drawn), uris(selection.chosen)


def of(rows: list[Row], uris: Uris) -> list[Row]:
    return [row for row in rows if row.image_uri in uris]


def nights(out: AuditedOutput) -> list[ClassNight]:
    policy = out.policy.policy_id
    text, stamp = pa.string(), pa.timestamp("us", tz="UTC")
    names = [("policy_id", text), ("image_uri", text), ("certificate", text)]
    cutoffs = [("family", text), ("certificate", text), ("cutoff", stamp)]
    with open_views(out.output) as connection:
        connection.register("families", pa.table({"policy_id": [policy], "family": [policy]}))
        connection.register("names", pa.schema(names).empty_table())
        connection.register("cutoffs", pa.schema(cutoffs).empty_table())
        found = read_class_answers(connection, [policy], read_selected(out.output))
    return class_nights(PROMISE, found[policy, ""], {})


def told(night: ClassNight) -> tuple[int, int, int, float, float]:
    return night.reviewed, night.unseen, night.stood_for, night.bet_on, night.could_be


def only(out: AuditedOutput) -> ClassAudit:
    (found,) = audit_output(out.output).found
    (of_class,) = found.classes
    return of_class


def test_five_drawn_of_35_stand_for_seven_each_and_for_the_worst_until_they_are_answered(
    out: AuditedOutput,
) -> None:
    rows = in_review(out, 40)
    assert told(*nights(out)) == (0, 40, 0, 40, 40)
    drawn, chosen = pushed(out, limit=10)
    assert (len(drawn), len(chosen)) == (5, 5)
    assert told(*nights(out)) == (0, 40, 30, 40, 40)
    answered = of(rows, drawn)
    say(out, answered[:2], has_class=True)
    say(out, answered[2:4], has_class=False)
    assert told(*nights(out)) == (2, 36, 30, 5 + 3 * 7, 40)
    out.answer(answered[4:], "skipped")
    assert told(*nights(out)) == (2, 36, 30, 5 + 3 * 7, 40)
    say(out, of(rows, chosen), has_class=False)
    (night,) = nights(out)
    assert told(night) == (2, 31, 30, 3 * 7, 35)
    assert night.guessed == 30 * 2 / 4


def test_a_later_queue_says_nothing_more_of_the_same_masks(out: AuditedOutput) -> None:
    """Which queue counts is fixed by the first draw: else whoever looks each night has many tries."""
    rows = in_review(out, 40)
    first, _ = pushed(out, limit=4, share=1.0)
    say(out, of(rows, first), has_class=False)
    assert told(*nights(out)) == (0, 36, 36, 0, 40)
    second, chosen = pushed(out, limit=8)
    say(out, of(rows, second | chosen), has_class=True)
    assert told(*nights(out)) == (8, 28, 28, 0, 40)


def test_masks_that_no_queue_has_seen_yet_stand_for_themselves(out: AuditedOutput) -> None:
    rows = in_review(out, 40)
    drawn, _ = pushed(out, limit=4, share=1.0)
    say(out, of(rows, drawn), has_class=False)
    in_review(out, 7)
    assert told(*nights(out)) == (0, 43, 36, 7, 47)


def test_parts_that_queues_saw_one_after_the_other_are_frames_of_their_own(out: AuditedOutput) -> None:
    """The second queue draws from both; of the 40 only what the first drew counts, of the 20 what it did."""
    rows = in_review(out, 40)
    drawn, _ = pushed(out, limit=4, share=1.0)
    say(out, of(rows, drawn), has_class=False)
    later = in_review(out, 20)
    assert told(*nights(out)) == (0, 56, 36, 20, 60)
    drawn, _ = pushed(out, limit=8, share=1.0)
    n = len(of(later, drawn))
    assert 0 < n < 8
    say(out, of(later, drawn), has_class=True)
    say(out, of(rows, drawn), has_class=True)
    assert told(*nights(out)) == (8, 48, 36 - (8 - n) + 20 - n, pytest.approx(20), 60)


def test_each_night_is_a_frame_of_its_own(out: AuditedOutput) -> None:
    """The queue drew from both nights: of the night without a drawn mask nothing is known."""
    first = in_review(out, 20)
    out.night += 1
    in_review(out, 1)
    drawn, _ = pushed(out, limit=2, share=1.0)
    assert drawn <= {row.image_uri for row in first}
    say(out, of(first, drawn), has_class=False)
    assert [told(night) for night in nights(out)] == [(0, 18, 18, 0, 20), (0, 1, 0, 1, 1)]


def test_what_left_the_queue_or_was_decided_without_it_counts_by_itself(out: AuditedOutput) -> None:
    rows = in_review(out, 40)
    drawn, _ = pushed(out, limit=4, share=1.0)
    say(out, of(rows, drawn), has_class=False)
    others = [row for row in rows if row.image_uri not in drawn]
    later = NOON + timedelta(days=9)
    in_review(out, 1, image_uri=others[0].image_uri, image_etag="changed", labeled_at=later)
    assert told(nights(out)[0]) == (0, 36, 35, 1, 40)
    say(out, others[1:3], has_class=True)
    say(out, others[3:4], has_class=False)
    assert told(nights(out)[0]) == (2, 33, 32, 1 + 2, 42)


def test_of_masks_in_review_the_drawn_ones_say_how_many_have_the_class(out: AuditedOutput) -> None:
    """Accepted are eight with the class, four of them missed; of 30 unseen in review two in five have it."""
    audits(out, 2, missed=True)
    audits(out, 2, missed=False)
    rows = in_review(out, 40)
    drawn, chosen = pushed(out, limit=10)
    assert only(out).estimate == 0.5
    say(out, of(rows, drawn)[:2], has_class=True)
    say(out, of(rows, drawn)[2:], has_class=False)
    found = only(out)
    assert found.estimate == pytest.approx(4 / (8 + 2 + 12))
    assert (found.unseen, found.stood_for, found.reviewed) == (35, 30, 2)
    drawn_ones = "masks in review are not answered: those drawn at random stand for 30"
    assert class_in_words(found).endswith(f"35 {drawn_ones}, and any of the other 5 could be such")
    say(out, of(rows, chosen), has_class=False)
    assert class_in_words(only(out)).endswith(f"30 {drawn_ones}")


def two_missed_and_twenty_in_review(out: AuditedOutput, nights: int) -> list[Row]:
    """On each night; the audits say that the missed ones have the class."""
    rows: list[Row] = []
    for out.night in range(nights):
        rows += [*out.rows(2, **AUDIT), *out.rows(20, **REVIEW)]
    out.commit(rows)
    say(out, [row for row in rows if row.audit], has_class=True)
    return rows


@pytest.mark.parametrize(("has_class", "state"), [(False, "broken"), (True, "undecided")])
def test_a_drawn_tenth_of_the_review_tells_whether_misses_break_the_promise(
    out: AuditedOutput, has_class: bool, state: str
) -> None:
    """On each of 16 nights two are missed; in review are 20, and they have the class or not."""
    rows = two_missed_and_twenty_in_review(out, nights=16)
    drawn, _ = pushed(out, limit=48, share=1.0)
    assert only(out).state == "undecided"
    say(out, of(rows, drawn), has_class=has_class)
    assert only(out).state == state


def test_who_answers_the_rest_of_the_review_too_finds_a_broken_promise_sooner(out: AuditedOutput) -> None:
    """On each of 9 nights two are missed, in review are 20 without the class: three drawn a night are too few
    to say so, and the answers to the others, whichever queue they came by, say it."""
    rows = two_missed_and_twenty_in_review(out, nights=9)
    drawn, _ = pushed(out, limit=27, share=1.0)
    say(out, of(rows, drawn), has_class=False)
    assert only(out).state == "undecided"
    _, chosen = pushed(out, limit=153, share=0.0)
    say(out, of(rows, chosen), has_class=False)
    found = only(out)
    assert (found.unseen, found.state) == (0, "broken")


def test_a_record_that_cannot_be_read_hides_what_the_draw_shows_and_stops_no_audit(
    out: AuditedOutput, caplog: pytest.LogCaptureFixture
) -> None:
    audits(out, 2, missed=True)
    rows = in_review(out, 20)
    drawn, _ = pushed(out, limit=5, share=1.0)
    say(out, of(rows, drawn), has_class=False)
    assert only(out).stood_for == 15
    storage.put(storage.join(out.output, "queues/00000001.json"), json.dumps({"schema_version": 1}).encode())
    assert only(out).stood_for == 0
    assert "count as if none were drawn" in caplog.text


def simulated(random: np.random.Generator, missed: float, drawn: int, answered: bool) -> ClassNight:
    """Of 50 images with the class 15 are in review, among 300; of the accepted half are audited. `answered`:
    later queues have brought all the others of the 300."""
    of_class, in_all, share = 15, 300, 0.5
    n_missed = random.binomial(50, missed)
    wrong, right = random.binomial(n_missed, share), random.binomial(35 - n_missed, share)
    such = random.hypergeometric(of_class, in_all - of_class, drawn)
    reviewed, unseen = (of_class, 0) if answered else (such, in_all - drawn)
    return ClassNight(
        date(2026, 1, 1), share, (share,) * (wrong + right), (True,) * wrong + (False,) * right, (),
        reviewed=reviewed, unseen=unseen, stood_for=unseen, guessed=0,
        bet_on=such * in_all / drawn, could_be=in_all,
    )  # fmt: skip


def called_broken(
    random: np.random.Generator, missed: float, drawn: int, answered: bool = False, nights: int = 90
) -> bool:
    """On any of the nights, by a test that errs with 5%."""
    losses, stakes = class_bets([simulated(random, missed, drawn, answered) for _ in range(nights)])
    return bool(p_values_above(losses, 0.1, stakes)[-1] <= 0.05)


@pytest.mark.parametrize(("drawn", "answered"), [(3, False), (30, False), (30, True)])
def test_a_promise_that_is_just_kept_is_called_broken_as_rarely_as_stated(drawn: int, answered: bool) -> None:
    random = np.random.default_rng(0)
    broken = sum(called_broken(random, 0.1, drawn, answered) for _ in range(100))
    assert broken <= binom.isf(0.001, 100, 0.05)


def test_a_promise_that_is_broken_threefold_is_found_by_three_drawn_a_night() -> None:
    random = np.random.default_rng(0)
    assert sum(called_broken(random, 0.3, 3) for _ in range(20)) == 20


def test_where_the_whole_review_is_answered_a_draw_hardly_delays_what_is_found() -> None:
    """In a fifth of the nights that the draw alone takes."""
    random = np.random.default_rng(0)
    assert sum(called_broken(random, 0.3, 3, answered=True, nights=18) for _ in range(20)) >= 18
