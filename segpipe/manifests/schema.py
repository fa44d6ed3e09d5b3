"""The manifest row: one finished fact about one image under one model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import pyarrow as pa

from segpipe.errors import FailureReason

Decision = Literal["accepted", "review", "failed"]
RoutingReason = Literal[
    "confident", "low_confidence", "audit", "no_policy", "uncertified_group", "drift", "suspended"
]
Reason = RoutingReason | FailureReason

FARTHEST_AHEAD = timedelta(days=366)  # of a stamp; no clock is wrong by more, so that is damage
SCHEMA_VERSION = 3  # 2 added confidence_map_uri, 3 drawn, draw_probability and from_scratch

ROW_SCHEMA = pa.schema(
    [
        ("image_uri", pa.string()),
        ("image_etag", pa.string()),
        ("image_bytes", pa.int64()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("mask_uri", pa.string()),
        ("mask_sha256", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("confidence", pa.float64()),
        ("discriminator_score", pa.float64()),
        ("class_fractions", pa.list_(pa.float32())),
        ("class_confidences", pa.list_(pa.float32())),
        ("audit", pa.bool_()),
        ("inclusion_probability", pa.float64()),
        ("model_id", pa.string()),
        ("policy_id", pa.string()),
        ("run_id", pa.string()),
        ("shard", pa.int32()),
        ("labeled_at", pa.timestamp("us", tz="UTC")),
        ("error", pa.string()),
        ("confidence_map_uri", pa.string()),
        ("drawn", pa.bool_()),
        ("draw_probability", pa.float64()),
        ("from_scratch", pa.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One manifest row, in the order of ROW_SCHEMA; None is null.

    image_bytes counts bytes, width and height pixels of the displayed image; confidence is the expected mask
    IoU (0 to 1); discriminator_score is raw, what the threshold is compared with; class_fractions (sum 1) and
    class_confidences (null where a class is not in the mask) follow the order of the model's classes;
    audit marks an accepted mask that was drawn to be checked by a person; inclusion_probability (0 to 1) is
    the chance that a person is asked about the mask: the audit share for an accepted one, audited or not, 1
    for one in review, 0 for a failed image (its inverse weighs what people decided so that it stands for all
    masks); confidence_map_uri is null unless the run was told to write confidence maps. Under a policy
    that may grow drawn says that people are asked about the mask whatever its decision, draw_probability
    (above 0 to 1) how likely that was, from_scratch that they are to draw it without the draft; otherwise
    these are null.
    """

    image_uri: str
    image_etag: str
    image_bytes: int
    image_width: int | None
    image_height: int | None
    mask_uri: str | None
    mask_sha256: str | None
    decision: Decision
    reason: Reason
    confidence: float | None
    discriminator_score: float | None
    class_fractions: Sequence[float] | None
    class_confidences: Sequence[float | None] | None
    audit: bool
    inclusion_probability: float
    model_id: str
    policy_id: str | None
    run_id: str
    shard: int
    labeled_at: datetime
    error: str | None
    confidence_map_uri: str | None = None
    drawn: bool | None = None
    draw_probability: float | None = None
    from_scratch: bool | None = None


def rows_table(
    rows: Iterable[Row], classes: Sequence[str], metadata: Mapping[str, str] | None = None
) -> pa.Table:
    """The rows as an Arrow table of ROW_SCHEMA; the classes and `metadata` go into the Parquet metadata."""
    rows = list(rows)
    columns = [[getattr(row, name) for row in rows] for name in ROW_SCHEMA.names]
    schema = ROW_SCHEMA.with_metadata(
        {
            "segpipe.schema_version": str(SCHEMA_VERSION),
            "segpipe.classes": json.dumps(list(classes)),
            **(metadata or {}),
        }
    )
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
