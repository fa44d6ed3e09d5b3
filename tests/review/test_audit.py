"""Audits: what is drawn, what the verdicts say, and what a broken promise leads to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from segpipe import storage
from segpipe.confidence.policy import BadFraction, MeanLoss, Policy, make_policy
from segpipe.labeling.routing import is_audited
from segpipe.manifests.reviews import Review, append_reviews, item_id
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.manifests.suspensions import is_suspended
from segpipe.review.audit import audit, in_words, weigh

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def policy_of(target: BadFraction | MeanLoss) -> Policy:
    scores, ious = np.linspace(0, 1, 300).tolist(), [0.95] * 300
    return make_policy(
        scores, ious, "m", target, 0.9, "f" * 64, "2026-01-01T00:00:00+00:00", candidate_thresholds=[0.0]
    )


@pytest.fixture(scope="module")
def policy() -> Policy:
    return policy_of(BadFraction(0.7, 0.05))


@pytest.fixture
def audited(storage_root: str, make_row: Callable[..., Row], policy: Policy) -> Callable[..., None]:
    """Accepted and audited masks in OUTPUT, with verdicts: (verdict, IoU) or None for none yet."""

    def add(verdicts: list[tuple[str, float | None] | None], policy_id: str = policy.policy_id) -> None:
        rows = [
            make_row(image_uri=f"/{n}.jpg", mask_sha256=f"h{n}", audit=True, policy_id=policy_id)
            for n in range(len(verdicts))
        ]
        extra = make_row(image_uri="/not audited.jpg", mask_sha256="h", policy_id=policy_id)
        assert commit_part(storage_root, date(2026, 11, 24), "r", 0, rows_table([*rows, extra], ["a", "b"]))
        given = [(row, one) for row, one in zip([*rows, extra], [*verdicts, ("rejected", None)], strict=True)]
        append_reviews(
            storage_root,
            [_review(row, *one, number) for number, (row, one) in enumerate(given) if one is not None],
        )

    return add


def _review(row: Row, verdict: str, iou: float | None, minute: int) -> Review:
    item = item_id(row.image_uri, row.image_etag, row.model_id, str(row.mask_sha256))
    return Review(
        review_id=item, item_id=item, image_uri=row.image_uri, image_etag=row.image_etag, model_id="m",
        draft_mask_sha256=str(row.mask_sha256), verdict=verdict, final_mask_uri=None,  # type: ignore[arg-type]
        final_mask_sha256=None, draft_iou=iou, overlap_pixels=0, audit=row.audit, inclusion_probability=0.02,
        reviewer="a", minutes=1.0, reviewed_at=NOON + timedelta(minutes=minute), origin="test",
    )  # fmt: skip


def test_the_draw_is_uniform_repeatable_and_nested() -> None:
    drawn = [is_audited(f"s3://b/{n}.jpg", "e", "m", 0.02) for n in range(50_000)]
    assert 900 <= sum(drawn) <= 1100, "a binomial of mean 1000 and deviation 31"
    assert drawn == [is_audited(f"s3://b/{n}.jpg", "e", "m", 0.02) for n in range(50_000)]
    assert all(is_audited(f"s3://b/{n}.jpg", "e", "m", 0.1) for n, one in enumerate(drawn) if one)
    other = [is_audited(f"s3://b/{n}.jpg", "e", "other model", 0.02) for n in range(50_000)]
    assert sum(one and two for one, two in zip(drawn, other, strict=True)) < 60, "20 by chance"
    assert not any(is_audited(f"{n}", "e", "m", 0.0) for n in range(100))
    assert all(is_audited(f"{n}", "e", "m", 1.0) for n in range(100))


def test_verdicts_become_losses_by_the_policys_own_target(policy: Policy) -> None:
    verdicts = [
        ("accepted", 1.0),
        ("corrected", 0.7),
        ("corrected", 0.69),
        ("rejected", None),
        ("skipped", None),
    ]
    found = weigh(verdicts, 8, policy, 0.05)
    assert (found.audited, found.decided, found.skipped, found.bad) == (8, 4, 1, 2)
    assert found.mean_loss == 0.5
    mean_loss = weigh(verdicts, 8, policy_of(MeanLoss(0.2)), 0.05)
    assert mean_loss.mean_loss == pytest.approx((0 + 0.3 + 0.31 + 1) / 4)
    assert mean_loss.bad is None


def test_a_promise_that_holds_suspends_nothing(
    storage_root: str, audited: Callable[..., None], policy: Policy
) -> None:
    audited([("accepted", 1.0)] * 30 + [("corrected", 0.3)] + [None] * 5)
    found = audit(storage_root, policy, 0.05)
    assert (found.audited, found.decided, found.bad, found.broken) == (36, 31, 1, False)
    assert found.low <= 1 / 31 <= found.high
    assert not is_suspended(storage_root, policy.policy_id)
    assert "not shown broken" in in_words(found)


def test_a_broken_promise_suspends_the_policy_once_and_says_why(
    storage_root: str, audited: Callable[..., None], policy: Policy
) -> None:
    audited([("accepted", 1.0), ("rejected", None)] * 12)
    found = audit(storage_root, policy, 0.05)
    assert found.broken
    assert found.evidence >= 20
    assert in_words(found).startswith("BROKEN")
    assert is_suspended(storage_root, policy.policy_id)
    assert not is_suspended(storage_root, "another policy")
    record = storage.read_bytes(f"{storage_root}/suspended/{policy.policy_id}.json")
    assert json.loads(record)["bad"] == 12
    audit(storage_root, policy, 0.01)
    assert storage.read_bytes(f"{storage_root}/suspended/{policy.policy_id}.json") == record


def test_audits_of_another_policy_say_nothing(
    storage_root: str, audited: Callable[..., None], policy: Policy
) -> None:
    audited([("rejected", None)] * 20, policy_id="earlier")
    found = audit(storage_root, policy, 0.05)
    assert (found.audited, found.decided, found.mean_loss) == (0, 0, None)
    assert (found.low, found.high) == (0, 1)


def test_with_enough_good_verdicts_the_promise_is_said_to_be_kept(policy: Policy) -> None:
    many = weigh([("accepted", 1.0)] * 400, 400, policy, 0.05)
    assert many.high < 0.05
    assert in_words(many).startswith("kept")
    assert replace(many, high=0.06).broken is False
