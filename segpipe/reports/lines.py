"""A policy, a run and audits as the lines that a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from segpipe.confidence.looks import in_words as in_words_of_look
from segpipe.confidence.promise import growth_in_words, meaning, not_audited, promise
from segpipe.reports import summary as words
from segpipe.reports.content import floor_in_words, thresholds
from segpipe.review import recalibration
from segpipe.review.audit_words import (
    in_words,
    night_in_words,
    skips_in_words,
    uncovered_in_words,
    waiting_in_words,
)
from segpipe.review.class_audit_words import class_in_words
from segpipe.tables import columns

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.labeling.totals import RunSummary
    from segpipe.review.audit import PolicyAudit
    from segpipe.review.recalibration import Recalibration


def policy_lines(policy: Policy) -> list[tuple[str, str]]:
    """(name, text) of what a policy promises, and on what it rests."""
    guards = [f"{guard.class_name} below {guard.min_confidence:g} goes to review" for guard in policy.guards]
    error, growth = policy.calibration_error, growth_in_words(policy)
    return [
        ("promise", promise(policy)),
        *([("meaning", meaning(policy))] if policy.accepts_some else []),
        *(("audit", line) for line in not_audited(policy)),
        *([("grows", growth)] if growth else []),
        *thresholds(policy),
        *(("guard", guard) for guard in guards),
        (
            "calibration error",
            "unknown: too few images"
            if error is None
            else f"{error:.3f} (confidence shown against true IoU{floor_in_words(policy)})",
        ),
        *([("look", in_words_of_look(policy.look))] if policy.look else []),
        ("policy", policy.policy_id),
        *(("warning", line) for line in policy.warnings),
    ]


def label_report(summary: RunSummary, policy: Policy | None, model: str, price_per_hour: float | None) -> str:
    """What a run did, what it promises and what to do next."""
    counts = [
        (count.decision, count.reason, str(count.images), f"{count.share:.1%}")
        for count in words.decision_counts(summary)
    ]
    facts: dict[str, str | None] = {
        "run": summary.run_id,
        "planned": words.planned_line(summary),
        "promise": words.promise_line(policy),
        "policy": words.policy_line(policy),
        "audit": words.suspension_line(summary, policy),
        "drift": words.drift_line(summary),
        "speed": words.speed_line(summary),
        "cost": words.cost_line(summary, price_per_hour),
        **words.places(summary),
    }
    report = [*columns([("decision", "reason", "images", "share"), *counts]), ""] if counts else []
    known = [(name, fact) for name, fact in facts.items() if fact]
    next_commands = [f"  {command}" for command in words.next_commands(summary, model)]
    return "\n".join([*report, *columns(known), "", "next:", *next_commands])


def recalibration_report(found: Sequence[Recalibration]) -> str:
    """A block of lines for each family of policies."""
    return "\n\n".join("\n".join(columns(_recalibration_lines(one))) for one in found)


def _recalibration_lines(found: Recalibration) -> list[tuple[str, str]]:
    waiting = f"{found.open} to answer, {found.held_back} answered ones wait behind the oldest: "
    return [
        ("policy", f"{found.policy_id} of model {found.model_id}, {_grown(found)}"),
        ("promise", found.promise),
        ("growth", recalibration.in_words(found)),
        (
            "drawn",
            f"{found.drawn} masks, {found.counted} count; {found.skipped} skipped count as bad; "
            f"{found.withdrawn} withdrawn",
        ),
        *([("waiting", waiting + str(found.oldest_open))] if found.open else []),
        *_following(found),
        ("reviewers", recalibration.ratio_in_words(found)),
    ]


def _following(found: Recalibration) -> Iterator[tuple[str, str]]:
    """How far the proof of the next threshold is, where there is one."""
    if found.next_threshold is not None and found.capital is not None:
        evidence = f"evidence of {found.capital:.4g} of {found.needed:.4g} needed"
        yield "next", f"score {found.next_threshold:.6g}: {evidence}{_cost_of_skips(found)}"


def _cost_of_skips(found: Recalibration) -> str:
    """What the skipped masks keep from being proven."""
    if found.capital_unskipped is None or found.capital_unskipped < found.needed:
        return ""
    return (
        f", {found.capital_unskipped:.4g} were it not for the skipped ones: answer those that can be answered"
    )


def audit_report(audits: Sequence[PolicyAudit]) -> str:
    """A block of lines for each policy."""
    blocks = ["\n".join(columns(_audit_lines(found))) for found in audits]
    return "\n\n".join(blocks) or "no policy has labelled into this OUTPUT: nothing was promised"


def _audit_lines(found: PolicyAudit) -> list[tuple[str, str]]:
    months = [
        (month, f"{month_found['estimate']:.3g} over {month_found['audited']} audits")
        for month, month_found in found.by_month.items()
    ]
    unwatched = f"; {found.unwatched} had no chance to be drawn" if found.unwatched else ""
    unanswered = f"{found.skipped} skipped, {found.withdrawn} withdrawn{unwatched}"
    more = {
        "not covered": uncovered_in_words(found),
        "skipped": skips_in_words(found),
        "waiting": waiting_in_words(found),
        "a night": night_in_words(found),
    }
    return [
        ("policy", f"{found.policy_id} of model {found.model_id}{' (in use)' if found.in_use else ''}"),
        ("promise", found.promise),
        ("audit", in_words(found)),
        *((f"{one.kind.replace('_', ' ')} {one.class_name}", class_in_words(one)) for one in found.classes),
        ("drawn", f"{found.drawn} of {found.accepted} accepted masks; {unanswered}"),
        *((name, text) for name, text in more.items() if text),
        *months,
    ]


def _grown(found: recalibration.Recalibration) -> str:
    return f"grown from {found.root}" if found.number else "as calibrated"
