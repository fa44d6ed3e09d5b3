"""What an annotation of Label Studio says about the draft it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from segpipe.errors import ReviewError
from segpipe.manifests.reviews import Verdict
from segpipe.review.brush import decode_brush
from segpipe.review.label_config import BRUSH, REJECT, VERDICT

IGNORED = 255  # what a reviewer left open


@dataclass(frozen=True)
class Drawing:
    """HxW uint8 class indices, 255 where nothing is drawn; overlap_pixels: claimed by several classes."""

    mask: np.ndarray
    overlap_pixels: int


def review_id(origin: str, annotation: dict[str, Any]) -> str:
    """The name of one decision: an annotation as it was last changed (32 hex digits)."""
    return hashlib.sha256(f"{origin}\n{annotation['updated_at']}".encode()).hexdigest()[:32]


def decided_at(annotation: dict[str, Any]) -> datetime:
    """When the annotation was last changed."""
    return datetime.fromisoformat(annotation["updated_at"])


def minutes_spent(annotation: dict[str, Any]) -> float | None:
    """Label Studio counts the seconds that the annotation was open."""
    seconds = annotation.get("lead_time")
    return None if seconds is None else float(seconds) / 60


def refusal(annotation: dict[str, Any]) -> Verdict | None:
    """skipped: the task was passed over; rejected: `reject` is chosen or nothing is drawn; else None."""
    if annotation.get("was_cancelled"):
        return "skipped"
    if _chose_reject(annotation["result"]) or not _brushes(annotation["result"]):
        return "rejected"
    return None


def drawing(annotation: dict[str, Any], classes: Sequence[str], shape: tuple[int, int]) -> Drawing:
    """The annotation's regions as one mask of this height and width; of two over a pixel the last one wins.

    Raises ReviewError for an unknown label, another size or bytes that are no brush mask.
    """
    mask = np.full(shape, IGNORED, np.uint8)
    overlapping = np.zeros(shape, bool)
    for region in _brushes(annotation["result"]):
        drawn, index = _drawn(region, shape), _class_of(region, classes)
        overlapping |= drawn & (mask != IGNORED) & (mask != index)
        mask[drawn] = index
    return Drawing(mask, int(overlapping.sum()))


def _brushes(result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [region for region in result if region.get("from_name") == BRUSH and "rle" in region["value"]]


def _chose_reject(result: list[dict[str, Any]]) -> bool:
    return any(
        part.get("from_name") == VERDICT and REJECT in part["value"].get("choices", ()) for part in result
    )


def _drawn(region: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    size = region["original_height"], region["original_width"]
    if size != shape:
        raise ReviewError(
            f"a region is of an image of {size[0]}x{size[1]} pixels, the draft {shape[0]}x{shape[1]}"
        )
    return decode_brush(region["value"]["rle"], *shape)


def _class_of(region: dict[str, Any], classes: Sequence[str]) -> int:
    labels = region["value"].get("brushlabels", [])
    if len(labels) != 1 or labels[0] not in classes:
        raise ReviewError(f"a region has the labels {labels}: it needs one of {', '.join(classes)}")
    return classes.index(labels[0])
