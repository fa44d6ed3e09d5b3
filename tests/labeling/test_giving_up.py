"""A run stops when too many of its latest images failed, and never because of a few."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from segpipe.errors import ArchivedError, DeniedError, NotFoundError, RunError, StorageError
from segpipe.labeling.giving_up import stop_when_too_many_fail
from segpipe.labeling.items import Legs, Outcome
from segpipe.manifests.schema import Reason, Row


def outcome(reason: Reason, error: Exception | None = None, height: int | None = 1) -> Outcome:
    decision = "review" if reason == "no_policy" else "failed"
    row = Row(
        image_uri="s3://b/a.png", image_etag="e", image_bytes=1, image_width=1, image_height=height,
        mask_uri=None, mask_sha256=None, decision=decision, reason=reason, confidence=None,
        discriminator_score=None,
        class_fractions=None, class_confidences=None, audit=False, inclusion_probability=0.0, model_id="m",
        policy_id=None, run_id="r1", shard=0, labeled_at=datetime.now(UTC), error="no answer",
    )  # fmt: skip
    return Outcome(row, Legs(), error)


GOOD, BROKEN, DOWN = outcome("no_policy"), outcome("unreadable"), outcome("storage", StorageError("down"))
DENIED, COLD = outcome("denied", DeniedError("no")), outcome("archived", ArchivedError("cold"))
GONE = outcome("storage", NotFoundError("gone"), height=None)
NO_PLACE, FAILING = outcome("storage", NotFoundError("no OUTPUT")), outcome("inference", ValueError("nan"))


def finished(outcomes: Iterable[Outcome], max_failure_rate: float = 0.5) -> int:
    """How many outcomes come through before the run stops; all of them if it does not."""
    seen: list[Outcome] = []
    with suppress(RunError):
        seen.extend(stop_when_too_many_fail(outcomes, max_failure_rate))
    return len(seen)


@pytest.mark.parametrize(
    ("outcomes", "passed"),
    [
        ([DOWN] * 1000, 32),  # half of 64, and the 33rd is too many
        ([FAILING] * 1000, 32),
        ([GOOD] * 5000 + [DOWN] * 1000, 5032),
        ([DOWN, GOOD] * 1000, 2000),
        ([DOWN, DOWN, GOOD] * 1000, 48),
        ([DOWN] * 32 + [GOOD] * 64 + [DOWN] * 32, 128),
        ([BROKEN] * 1000, 500),  # half of 1,000: bad images lie together
        ([GONE] * 1000, 500),
        ([NO_PLACE] * 1000, 32),  # decoded, and then there was no place for its mask
        ([BROKEN] * 400 + [GOOD] * 1000 + [BROKEN] * 400, 1800),
        ([BROKEN] * 490 + [DOWN] * 30, 500),
        ([DENIED] * 5000 + [GOOD], 5001),  # a denied folder, however large, is passed by
        ([COLD] * 5000 + [DOWN] * 1000, 5032),
    ],
)
def test_where_a_run_stops(outcomes: list[Outcome], passed: int) -> None:
    assert finished(outcomes) == passed


def test_the_limit_can_be_set() -> None:
    assert finished([DOWN] * 1000, 0.05) == 3
    assert finished([BROKEN] * 1000, 0.05) == 50
    assert finished([DOWN] * 5000, 1) == 5000


def test_the_reason_is_said_in_one_line() -> None:
    with pytest.raises(
        RunError,
        match=r"^33 of the last 43 images failed \(20 inference, 13 storage\), so run r1 stops .*; the last, "
        r"s3://b/a\.png: no answer; mend that and resume with the same run id, or .*--max-failure-rate 0\.5$",
    ):
        list(stop_when_too_many_fail([GOOD] * 10 + [FAILING] * 20 + [DOWN] * 50, 0.5))
