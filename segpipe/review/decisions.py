"""What an annotation of Label Studio says about the draft it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

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

    @property
    def is_empty(self) -> bool:
        """Whether the canvas was left without a pixel."""
        return bool((self.mask == IGNORED).all())


class _Brush(BaseModel):
    rle: list[int] | None = None
    brushlabels: list[str] = []


class _Region(BaseModel):
    original_height: int
    original_width: int
    value: _Brush


class _Choices(BaseModel):
    choices: list[str] = []


class _Verdict(BaseModel):
    value: _Choices


T = TypeVar("T")
_PARTS = TypeAdapter(list[dict[str, Any]])
_REGIONS, _VERDICTS = TypeAdapter(list[_Region]), TypeAdapter(list[_Verdict])


def review_id(item: str, annotation: dict[str, Any]) -> str:
    """The name of one decision about an item: an annotation as it was last changed (32 hex digits).

    By whatever address the server is reached, its annotation has this name.
    """
    name = annotation.get("unique_id") or annotation["id"]
    return hashlib.sha256(f"{item}\n{name}\n{annotation['updated_at']}".encode()).hexdigest()[:32]


def decided_at(annotation: dict[str, Any]) -> datetime:
    """When the annotation was last changed."""
    return datetime.fromisoformat(annotation["updated_at"])


def minutes_spent(annotation: dict[str, Any]) -> float | None:
    """Label Studio counts the seconds that the annotation was open."""
    seconds = annotation.get("lead_time")
    return None if seconds is None else float(seconds) / 60


def refusal(annotation: dict[str, Any]) -> Verdict | None:
    """skipped: the task was passed over; rejected: `reject` is chosen; else None.

    Raises ReviewError for an annotation of another shape.
    """
    if annotation.get("was_cancelled"):
        return "skipped"
    verdicts = _parsed(_VERDICTS, annotation, VERDICT)
    return "rejected" if any(REJECT in verdict.value.choices for verdict in verdicts) else None


def drawing(annotation: dict[str, Any], classes: Sequence[str], shape: tuple[int, int]) -> Drawing:
    """The annotation's regions as one mask of this height and width; of two over a pixel the last one wins.

    Raises ReviewError for an unknown label, another size or shape, or bytes that are no brush mask.
    """
    mask = np.full(shape, IGNORED, np.uint8)
    overlapping = np.zeros(shape, bool)
    for region in _parsed(_REGIONS, annotation, BRUSH):
        if region.value.rle is None:
            continue
        drawn, index = _drawn(region, region.value.rle, shape), _class_of(region, classes)
        overlapping |= drawn & (mask != IGNORED) & (mask != index)
        mask[drawn] = index
    return Drawing(mask, int(overlapping.sum()))


def _parsed(kind: TypeAdapter[list[T]], annotation: dict[str, Any], control: str) -> list[T]:
    """What was made with one control of the interface."""
    try:
        parts = _PARTS.validate_python(annotation["result"])
        return kind.validate_python([part for part in parts if part.get("from_name") == control])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ReviewError(
            f"its {control} has an unexpected shape ({where}: {first['msg']}); draw it again"
        ) from error


def _drawn(region: _Region, rle: list[int], shape: tuple[int, int]) -> np.ndarray:
    size = region.original_height, region.original_width
    if size != shape:
        raise ReviewError(
            f"a region is of an image of {size[0]}x{size[1]} pixels, the draft {shape[0]}x{shape[1]}"
        )
    return decode_brush(rle, *shape)


def _class_of(region: _Region, classes: Sequence[str]) -> int:
    labels = region.value.brushlabels
    if len(labels) != 1 or labels[0] not in classes:
        raise ReviewError(f"a region has the labels {labels}: it needs one of {', '.join(classes)}")
    return classes.index(labels[0])
