"""Only a certified threshold of this very model accepts anything (C8)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from segpipe.confidence.policy import ClassGuard, Policy
from segpipe.errors import PolicyError
from segpipe.labeling.routing import route

MODEL = "aaaaaaaaaaaa"
LOW = ("review", "low_confidence")
HIGH = ("accepted", "confident")
SURE = (0.9, math.nan)


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
    assert route(1e9, SURE, None, MODEL) == ("review", "no_policy")


def test_another_models_policy_is_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError, match="bbbbbbbbbbbb"):
        route(1.0, SURE, make_policy(0.5, "bbbbbbbbbbbb"), MODEL)
