"""A run in words: values worked out by hand from small summaries."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from segpipe.confidence.drift import Drift
from segpipe.labeling.estimate import Estimate
from segpipe.labeling.totals import RunSummary
from segpipe.models.labeler import Passes
from segpipe.reports import summary as words

IDLE = dict.fromkeys(("read", "decode", "infer", "encode", "write", "wait"), 0.0)
SUMMARY = RunSummary(
    run_id="run-1",
    source="s3://bucket/images",
    output="s3://bucket/labels",
    model_id="0123456789ab",
    policy_id="ba9876543210",
    planned=10,
    accepted=6,
    review=3,
    failed=1,
    labelled_elsewhere=0,
    already_done=0,
    retried=0,
    seconds=4.0,
    images_per_second=2.5,
    legs=IDLE | {"infer": 3.0, "wait": 0.5},
    bottleneck="infer",
    reasons={"confident": 6, "low_confidence": 2, "drift": 1, "unreadable": 1},
    skipped={},
    drift=None,
    worst=(),
)


def changed(**fields: Any) -> RunSummary:
    return dataclasses.replace(SUMMARY, **fields)


def test_decisions_are_listed_accepted_first_with_their_share() -> None:
    counts = [dataclasses.astuple(count) for count in words.decision_counts(SUMMARY)]
    assert counts == [
        ("accepted", "confident", 6, 0.6),
        ("review", "low_confidence", 2, 0.2),
        ("review", "drift", 1, 0.1),
        ("failed", "unreadable", 1, 0.1),
    ]


def test_every_reason_of_the_manifest_belongs_to_the_decision_it_has_there() -> None:
    review = ["low_confidence", "audit", "no_policy", "uncertified_group", "drift", "suspended"]
    failed = ["unreadable", "unsupported", "too_large", "storage", "inference"]
    counts = words.decision_counts(changed(reasons=dict.fromkeys(["confident", *review, *failed], 1)))
    decisions = {count.reason: count.decision for count in counts}
    assert decisions == (
        {"confident": "accepted"} | dict.fromkeys(review, "review") | dict.fromkeys(failed, "failed")
    )


def test_a_run_without_images_has_no_counts() -> None:
    assert words.decision_counts(changed(reasons={})) == []


def test_the_planned_line_says_why_other_images_were_left_out() -> None:
    assert words.planned_line(SUMMARY) == "10 images"
    some = changed(already_done=7, retried=2, skipped={".txt": 3, "hidden": 1})
    assert words.planned_line(some) == (
        "10 images (7 already done, 2 tried again, 3 .txt left aside, 1 hidden left aside)"
    )


def test_the_cost_is_that_of_the_seconds_spent_labelling() -> None:
    assert words.cost_line(SUMMARY, None) is None
    # 4 s of 90 an hour: 0.10 for 10 images, 10 for a thousand.
    assert words.cost_line(SUMMARY, 90) == "0.10 at 90 an hour; 10 per 1,000 images"


def test_passes_say_what_tiles_cost() -> None:
    assert "fitted to the working size" in words.passes_line(Passes(None, None, None))
    assert "once some have been labelled" in words.passes_line(Passes(2.0, None, None))
    assert words.passes_line(Passes(2.0, 12.0, 9.87)).startswith(
        "12.0 tiles an image at 2 pixels of an image to one of the networks, 9.9 times"
    )


def test_an_estimate_says_what_it_rests_on() -> None:
    assert words.estimate_line(Estimate(*[None] * 2, (), *[None] * 4)).startswith(
        "unknown: nothing has been labelled"
    )
    known = Estimate("run-1", False, (), 2.5, 7200.0, 6.0, 1.0)
    assert words.estimate_line(known) == "2.0 h at 2.5 images/s, the rate of run run-1, 6.00 in all"
    assert words.estimate_line(dataclasses.replace(known, times_workers=4.0)) == (
        "2.0 h at 2.5 images/s, for 4 times the workers of run run-1, 6.00 in all"
    )
    assert words.estimate_line(dataclasses.replace(known, times_workers=None)) == (
        "2.0 h at 2.5 images/s, the rate of run run-1, and holds for as many workers as that had, 6.00 in all"
    )
    assert "of another model" in words.estimate_line(dataclasses.replace(known, other_model=True))
    assert [words.duration(seconds) for seconds in (3.4, 119, 300, 7100, 36_000)] == [
        "3 s", "119 s", "5 min", "118 min", "10.0 h",
    ]  # fmt: skip


DRIFT = Drift(p_value=2.14e-7, distance=0.4, n_scores=256, alarm=True, false_alarm_rate=0.0001)


def test_the_drift_line_says_what_was_found_and_what_came_of_it() -> None:
    everything = changed(drift=DRIFT, reasons={"drift": 9, "unreadable": 1})
    assert words.drift_line(everything) == (
        "ALARM, the images are not like the calibration images "
        "(p = 2.1e-07 over 256 scores, alarm at 0.0001); all masks went to review: "
        "look at the images, recalibrate or retrain"
    )
    warned = words.drift_line(changed(drift=DRIFT, reasons={"confident": 9}))
    assert "only warned of, masks were accepted" in warned
    assert "went to review" not in warned


def test_the_drift_line_without_an_alarm() -> None:
    calm = dataclasses.replace(DRIFT, p_value=0.43, alarm=False)
    assert words.drift_line(changed(drift=calm)) == ("none found (p = 0.43 over 256 scores, alarm at 0.0001)")
    untested = dataclasses.replace(calm, p_value=None, distance=None, n_scores=1)
    assert words.drift_line(changed(drift=untested)) == (
        "not tested: too few scores (1) for a false alarm rate of 0.0001"
    )
    assert words.drift_line(changed(drift=None)) is None


def test_the_speed_line_names_the_bottleneck() -> None:
    line = words.speed_line(SUMMARY)
    assert line.startswith("2.5 images/s over 4.0 s; infer is the bottleneck (")
    assert words.speed_line(changed(bottleneck=None)) == "nothing to label"


def test_the_next_commands_fit_what_the_run_left() -> None:
    def verbs(summary: RunSummary) -> list[str]:
        commands = [shlex.split(command) for command in words.next_commands(summary, "s3://bucket/model")]
        assert all(command[0] == "segpipe" for command in commands)
        return [
            command[3].split(" FROM ")[1].split()[0] if command[1] == "query" else command[1]
            for command in commands
        ]

    assert verbs(SUMMARY) == ["failures", "review_queue", "accepted", "runs"]
    unpromised = changed(accepted=0, failed=0, review=10, reasons={"no_policy": 10})
    assert verbs(unpromised) == ["calibrate", "review_queue", "runs"]
    assert verbs(changed(accepted=0, review=0, failed=0, reasons={})) == ["runs"]


def test_nothing_for_people_shows_a_password() -> None:
    summary = changed(output="ftp://me:hunter2-hunter2@host/labels")
    said = [
        *words.next_commands(summary, "ftp://me:hunter2-hunter2@host/model"),
        *words.places(summary).values(),
    ]
    assert "hunter2" not in " ".join(said)


def test_a_suspension_is_said_with_its_evidence_and_remedy() -> None:
    line = words.suspension_line(changed(output="/out", policy_id="p1", reasons={"suspended": 9}))
    assert line is not None
    assert line.startswith("SUSPENDED: the audit has shown that the promise of policy p1 is broken, 9 images")
    assert "/out/policies/*-suspended.json" in line
    assert "calibrate" in line
    assert words.suspension_line(changed(reasons={"confident": 9})) is None
