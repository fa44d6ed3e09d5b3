"""Only a certified threshold of this very model accepts anything (C8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from segpipe.confidence.policy import ClassGuard, Policy
from segpipe.errors import PolicyError
from segpipe.labeling.decisions import Rules, decide, route
from segpipe.manifests.schema import Row

MODEL = "aaaaaaaaaaaa"
LOW = ("review", "low_confidence")
HIGH = ("accepted", "confident")
SURE = (0.9, math.nan)


def undecided(score: float | None) -> Row:
    """The row of a labelled image as an engine gives it."""
    return Row(
        image_uri="s3://b/a.png", image_etag="e", image_bytes=1, image_width=1, image_height=1,
        mask_uri="s3://o/a.png", mask_sha256="0" * 64, decision="review", reason="no_policy", confidence=0.9,
        discriminator_score=score, class_fractions=[1.0, 0.0], class_confidences=[0.9, None], audit=False,
        inclusion_probability=1.0, model_id=MODEL, policy_id=None, run_id="r1", shard=0,
        labeled_at=datetime.now(UTC), error=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("score", "threshold", "expected"),
    [
        (0.5, 0.5, HIGH),
        (0.5000001, 0.5, HIGH),
        (0.4999999, 0.5, LOW),
        (-3.0, -3.5, HIGH),
        (1e9, None, LOW),
        (math.nan, 0.5, LOW),
        (math.inf, 0.5, LOW),
        (-math.inf, 0.5, LOW),
    ],
)
def test_the_score_is_compared_with_the_threshold(
    make_policy: Callable[..., Policy], score: float, threshold: float | None, expected: tuple[str, str]
) -> None:
    assert route(score, SURE, make_policy(threshold), MODEL) == expected


@pytest.mark.parametrize(
    ("class_confidences", "expected"),
    [((0.2, 0.6), HIGH), ((0.2, 0.5), HIGH), ((0.9, 0.49), LOW), ((0.9, math.nan), HIGH)],
)
def test_a_guarded_class_that_is_doubtful_is_reviewed_whatever_the_score(
    make_policy: Callable[..., Policy], class_confidences: tuple[float, float], expected: tuple[str, str]
) -> None:
    policy = make_policy(0.5, guards=(ClassGuard("person", 1, 0.5),))
    assert route(1e9, class_confidences, policy, MODEL) == expected
    assert route(0.4, class_confidences, policy, MODEL) == LOW


def test_without_a_policy_everything_is_reviewed() -> None:
    rules = Rules(policy=None, audit_share=1.0, drifted=False, suspended=False)
    (row,) = decide([undecided(1e9)], rules)
    assert (row.decision, row.reason, row.policy_id) == ("review", "no_policy", None)
    assert (row.audit, row.inclusion_probability) == (False, 1.0)


def test_another_models_policy_is_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError, match="bbbbbbbbbbbb"):
        route(1.0, SURE, make_policy(0.5, "bbbbbbbbbbbb"), MODEL)


@pytest.mark.parametrize(
    ("score", "drifted", "suspended", "expected"),
    [
        (0.7, False, False, ("accepted", "confident", True, 1.0)),
        (0.3, False, False, ("review", "low_confidence", False, 1.0)),
        (None, False, False, ("review", "low_confidence", False, 1.0)),  # a score that is no number
        (0.7, True, False, ("review", "drift", False, 1.0)),
        (0.7, False, True, ("review", "suspended", False, 1.0)),
        (0.7, True, True, ("review", "suspended", False, 1.0)),
    ],
)
def test_what_a_shard_is_committed_with(
    make_policy: Callable[..., Policy],
    score: float | None,
    drifted: bool,
    suspended: bool,
    expected: tuple[str, str, bool, float],
) -> None:
    rules = Rules(make_policy(0.5), audit_share=1.0, drifted=drifted, suspended=suspended)
    (row,) = decide([undecided(score)], rules)
    assert (row.decision, row.reason, row.audit, row.inclusion_probability) == expected
    assert row.policy_id == "p1"


def test_a_failed_row_stays_failed_and_names_the_policy(make_policy: Callable[..., Policy]) -> None:
    failed = replace(undecided(None), decision="failed", reason="unreadable", inclusion_probability=0.0)
    for drifted, suspended in ((False, False), (True, False), (False, True)):
        (row,) = decide([failed], Rules(make_policy(0.5), 1.0, drifted, suspended))
        assert row == replace(failed, policy_id="p1")
