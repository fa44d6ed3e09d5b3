"""A manifest of accepted, audited masks under a real policy, and people's verdicts on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from plain_policy import make_policy

from segpipe import storage
from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.confidence.policy import Policy, sealed, to_json
from segpipe.manifests.policies import keep_policy
from segpipe.manifests.reviews import Review, append_reviews, item_id
from segpipe.manifests.run_files import PLAN_HEADER, plan_uri
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part, table_bytes
from segpipe.metrics import IouRule

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass
class AuditedOutput:
    """OUTPUT with audited masks, one second after the other, on the day that `night` counts."""

    output: str
    policy: Policy
    n_parts: int = 0
    n_reviews: int = 0
    n_rows: int = 0
    night: int = 0

    def planned(self, source: str) -> None:
        """Keep that the run's images were found in SOURCE."""
        header = {PLAN_HEADER: json.dumps({"source": source})}
        table = pa.table({"image_uri": pa.array([], pa.string())}).replace_schema_metadata(header)
        storage.put(plan_uri(self.output, "r"), table_bytes(table))

    def label_nights(self, nights: int, n: int, **values: Any) -> list[Row]:
        """n more rows on each of so many days after the last one."""
        rows = []
        for _ in range(nights):
            self.night += 1
            rows += self.label(n, **values)
        return rows

    def label(self, n: int, **values: Any) -> list[Row]:
        """n more rows in a part of their own."""
        return self.commit(self.rows(n, **values))

    def rows(self, n: int, **values: Any) -> list[Row]:
        """n more rows, in no part yet."""
        self.n_rows += n
        return [self._row(self.n_rows - n + number, values) for number in range(n)]

    def commit(self, rows: list[Row]) -> list[Row]:
        """The rows as a part of their own."""
        assert commit_part(self.output, NOON.date(), "r", self.n_parts, rows_table(rows, ["a", "b"]))
        self.n_parts += 1
        return rows

    def answer(
        self,
        rows: list[Row],
        verdict: str,
        draft_iou: float | None = None,
        graded: float | None = None,
        pixels: Sequence[int] | None = None,
    ) -> None:
        """The same verdict about each of the rows; `pixels` of each class in the final mask."""
        same = {"draft_iou_graded": graded, "final_class_pixels": pixels}
        reviews = [self._review(row, verdict, draft_iou) for row in rows]
        append_reviews(self.output, [replace(review, **same) for review in reviews])

    def _row(self, number: int, values: dict[str, Any]) -> Row:
        uri = f"/bucket/{number:04d}.jpg"
        row = Row(
            image_uri=uri, image_etag="e", image_bytes=1, image_width=1, image_height=1,
            mask_uri=f"{uri}.png", mask_sha256=f"sha {number}", decision="accepted",
            reason="confident",
            confidence=0.9,
            discriminator_score=1.0, class_fractions=None, class_confidences=None, audit=True,
            inclusion_probability=0.02, model_id=self.policy.model_id, policy_id=self.policy.policy_id,
            run_id="r", shard=self.n_parts, error=None,
            labeled_at=NOON + timedelta(days=self.night, seconds=number),
        )  # fmt: skip
        return replace(row, **values)

    def _review(self, row: Row, verdict: str, draft_iou: float | None) -> Review:
        self.n_reviews += 1
        final = None if verdict in ("rejected", "skipped") else row.mask_uri
        return Review(
            review_id=str(self.n_reviews), image_uri=row.image_uri, image_etag=row.image_etag,
            item_id=item_id(row.image_uri, row.image_etag, row.model_id, str(row.mask_sha256)),
            model_id=row.model_id, draft_mask_sha256=str(row.mask_sha256), verdict=verdict,
            final_mask_uri=final, final_mask_sha256=final, draft_iou=draft_iou, overlap_pixels=0,
            audit=row.audit, inclusion_probability=0.02, reviewer=None, minutes=None, origin="test",
            reviewed_at=NOON + timedelta(days=1, seconds=self.n_reviews),
        )  # fmt: skip


def calibrated(
    target: BadFraction | MeanLoss,
    created_at: str = "2026-11-22T00:00:00+00:00",
    iou_rule: IouRule | None = None,
    cameras: int = 0,
    **changes: Any,
) -> Policy:
    """A policy that accepts; with a certificate for each of so many cameras, and with fields changed."""
    scores = np.tile(np.linspace(0, 1, 200), max(cameras, 1))
    names = [f"cam{camera}" for camera in range(cameras) for _ in range(200)]
    by_camera = {"per": r"cam\d", "per_group": names} if cameras else {}
    made = make_policy(
        scores, np.ones(len(scores)), "m", target, 0.9, "f" * 64, created_at, iou_rule=iou_rule, **by_camera
    )
    return sealed(replace(made, **changes))


def audited_output(output: str, target: BadFraction | MeanLoss | None = None, **values: Any) -> AuditedOutput:
    """OUTPUT with the policy kept in it; default: IoU 0.7, at most 10% bad."""
    policy = calibrated(target or BadFraction(0.7, 0.1), **values)
    keep_policy(output, policy.policy_id, to_json(policy))
    return AuditedOutput(output, policy)
