"""A mask that a person is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segpipe.manifests.reviews import item_id


@dataclass(frozen=True)
class QueueItem:
    """A mask to look at; from_scratch: the reviewer is to draw it without the draft.

    is_audit is for whoever keeps count, never for the reviewer.
    """

    item_id: str
    image_uri: str
    mask_uri: str
    mask_sha256: str
    model_id: str
    confidence: float | None
    is_audit: bool
    from_scratch: bool = False


def queue_item(row: Mapping[str, Any]) -> QueueItem:
    """Of a manifest row."""
    name = item_id(row["image_uri"], row["image_etag"], row["model_id"], row["mask_sha256"])
    return QueueItem(
        name,
        row["image_uri"],
        row["mask_uri"],
        row["mask_sha256"],
        row["model_id"],
        row["confidence"],
        row["audit"],
        bool(row["from_scratch"]),
    )
