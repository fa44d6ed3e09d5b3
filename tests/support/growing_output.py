"""An OUTPUT whose masks were drawn blind to the score under a policy that grows, and people's verdicts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
from audited_output import NOON, AuditedOutput
from plain_policy import make_policy

from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import Policy, to_json
from segpipe.manifests.policies import keep_policy
from segpipe.manifests.reviews import append_reviews
from segpipe.manifests.schema import Row

SHARE = 0.02


def growing_policy(n: int = 60, created_at: str = "2026-11-22T00:00:00+00:00", **options: Any) -> Policy:
    """Scores from 0 to 1, each its mask's IoU, the lower half bad: at most 10% with 90% confidence."""
    scores = np.linspace(0, 1, n)
    given = {"draw_share": SHARE} | options
    return make_policy(scores, scores, "a" * 12, BadFraction(0.5, 0.1), 0.9, "f" * 64, created_at, **given)


class GrowingOutput(AuditedOutput):
    """Drawn masks, one second after the other; their scores are those asked for."""

    def drawn(self, n: int, score: float, **values: Any) -> list[Row]:
        """n more drawn masks of this score, accepted or not as the policy has it."""
        accepted = self.policy.threshold is not None and score >= self.policy.threshold
        decided = ("accepted", "confident") if accepted else ("review", "low_confidence")
        fields = {
            "decision": decided[0], "reason": decided[1], "audit": accepted, "discriminator_score": score,
            "inclusion_probability": SHARE if accepted else 1.0, "drawn": True, "draw_probability": SHARE,
            "from_scratch": False, "class_confidences": [0.9, None],
        }  # fmt: skip
        return self.label(n, **(fields | values))

    def said(self, rows: list[Row], *, bad: bool, from_scratch: bool = False, **changes: Any) -> None:
        """People find these masks bad, or good."""
        verdict, iou = ("corrected", 0.2) if bad else ("accepted", 1.0)
        reviews = [self._review(row, verdict, iou) for row in rows]
        changes = {"draft_iou_graded": iou, "from_scratch": from_scratch} | changes
        append_reviews(self.output, [replace(review, **changes) for review in reviews])

    def later(self, days: int) -> dict[str, Any]:
        return {"reviewed_at": NOON + timedelta(days=days, seconds=self.n_reviews)}


def growing_output(output: str, policy: Policy | None = None) -> GrowingOutput:
    """OUTPUT with the policy kept in it."""
    policy = policy or growing_policy()
    keep_policy(output, policy.policy_id, to_json(policy))
    return GrowingOutput(output, policy)
