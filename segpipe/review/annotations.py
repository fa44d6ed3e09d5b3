"""What an annotation of Label Studio says about the draft it answers.

Whoever annotates, or can write into the project, chooses what is read here: so everything has bounds, and
what keeps to none is refused with a reason, never taken for an empty canvas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from segpipe.datasets import IGNORED
from segpipe.errors import ReviewError
from segpipe.manifests.reviews import Verdict
from segpipe.review.brush import decode_brush
from segpipe.review.label_config import BRUSH, REJECT, VERDICT
from segpipe.validation import first_problem

MAX_REGIONS = 1000
MAX_SECONDS = 366 * 24 * 3600.0  # an editor may stay open over a holiday
MAX_SIDE = 1_000_000
CLOCK_SKEW = timedelta(hours=1)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_DRAWING_TOOLS = ("brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint", "vector")

Number = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, StringConstraints(max_length=1000)]


class _Author(BaseModel):
    email: Text


class _Fields(BaseModel):
    id: Number
    unique_id: Number | Text | None = None
    updated_at: Text
    completed_by: Number | Text | _Author | None = None
    lead_time: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] | None = None
    was_cancelled: bool | None = None
    result: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_REGIONS)] | None = None


class _Brush(BaseModel):
    format: Literal["rle"] = "rle"
    rle: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(fail_fast=True, min_length=1)]
    brushlabels: Annotated[list[Text], Field(fail_fast=True, max_length=256)] = []


class _Region(BaseModel):
    original_height: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    original_width: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    image_rotation: Literal[0] = 0
    value: _Brush


class _Choices(BaseModel):
    choices: Annotated[list[Text], Field(fail_fast=True, max_length=256)] = []


class _Verdict(BaseModel):
    value: _Choices


T = TypeVar("T")
_REGIONS, _VERDICTS = TypeAdapter(list[_Region]), TypeAdapter(list[_Verdict])


@dataclass(frozen=True)
class Annotation:
    """One answer to one task, within bounds; each region and choice in `parts` is yet to be read.

    number: its own in Label Studio; name, revision: what tells it, and each change of it, from all others,
    by whatever address the server is reached; author: a user's number or e-mail address; minutes: how long it
    was open; skipped: the task was passed over.
    """

    number: int
    name: str
    revision: str
    decided_at: datetime
    author: int | str | None
    minutes: float | None
    skipped: bool
    parts: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Drawing:
    """HxW uint8 class indices, 255 where nothing is drawn; overlap_pixels: claimed by several classes."""

    mask: np.ndarray
    overlap_pixels: int

    @property
    def is_empty(self) -> bool:
        """Whether the canvas was left without a pixel."""
        return bool((self.mask == IGNORED).all())


def read_annotation(found: object, now: datetime) -> Annotation:
    """An annotation as the JSON export has it. ReviewError: another shape, or times that cannot be."""
    fields = _fields(found)
    if fields.result is None and not fields.was_cancelled:
        raise ReviewError("the annotation has no result: submit it again")
    return Annotation(
        number=fields.id,
        name=str(fields.unique_id or fields.id),
        revision=fields.updated_at,
        decided_at=_decided_at(fields.updated_at, now),
        author=fields.completed_by.email if isinstance(fields.completed_by, _Author) else fields.completed_by,
        # Label Studio counts the seconds that the annotation was open.
        minutes=None if fields.lead_time is None else fields.lead_time / 60,
        skipped=bool(fields.was_cancelled),
        parts=tuple(fields.result or ()),
    )


def _fields(found: object) -> _Fields:
    try:
        return _Fields.model_validate(found)
    except ValidationError as error:
        raise ReviewError(
            f"the annotation has an unexpected shape ({first_problem(error)}); submit it again"
        ) from error


def _decided_at(text: str, now: datetime) -> datetime:
    """In the future it would win over every later answer."""
    try:
        decided_at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ReviewError(f"its time of change {text[:40]!r} is no ISO 8601 time; submit it again") from error
    if decided_at.tzinfo is None:
        raise ReviewError(f"its time of change {text[:40]!r} has no time zone; submit it again")
    if not EARLIEST <= decided_at <= now + CLOCK_SKEW:
        raise ReviewError(
            f"its time of change {text[:40]!r} cannot be, it is {now:%Y-%m-%d %H:%M} UTC: set the server's "
            "clock and submit it again"
        )
    return decided_at.astimezone(UTC)


def review_id(item: str, annotation: Annotation) -> str:
    """The name of one decision about an item: an annotation as it was last changed (32 hex digits)."""
    return hashlib.sha256(f"{item}\n{annotation.name}\n{annotation.revision}".encode()).hexdigest()[:32]


def refusal(annotation: Annotation) -> Verdict | None:
    """skipped: the task was passed over; rejected: `reject` is chosen; else None.

    Raises ReviewError for a choice of another shape.
    """
    if annotation.skipped:
        return "skipped"
    verdicts = _parsed(_VERDICTS, annotation, VERDICT)
    return "rejected" if any(REJECT in verdict.value.choices for verdict in verdicts) else None


def drawing(annotation: Annotation, classes: Sequence[str], shape: tuple[int, int]) -> Drawing:
    """The annotation's regions as one mask of this height and width; of two over a pixel the last one wins.

    Raises ReviewError for what was drawn with another tool, an unknown label, another size or shape, or bytes
    that are no brush mask.
    """
    _require_brush_alone(annotation)
    mask = np.full(shape, IGNORED, np.uint8)
    overlapping = np.zeros(shape, bool)
    for region in _parsed(_REGIONS, annotation, BRUSH):
        drawn, index = _drawn(region, shape), _class_of(region, classes)
        overlapping |= drawn & (mask != IGNORED) & (mask != index)
        mask[drawn] = index
    return Drawing(mask, int(overlapping.sum()))


def blank_as_first_class(drawn: Drawing) -> Drawing:
    """What was left blank of a drawing from scratch is of the first class, usually the background: nobody
    paints that; an empty canvas says that there is nothing else."""
    return replace(drawn, mask=np.where(drawn.mask == IGNORED, np.uint8(0), drawn.mask))


def _require_brush_alone(annotation: Annotation) -> None:
    """What another control of the interface has drawn would be missing from the mask."""
    for part in annotation.parts:
        kind = part.get("type")
        drawn = isinstance(kind, str) and (kind.endswith("labels") or kind in _DRAWING_TOOLS)
        if drawn and part.get("from_name") != BRUSH:
            raise ReviewError(
                f"a region ({str(kind)[:40]!r}) was not drawn with the labels {BRUSH!r} of segpipe's "
                "interface; draw it with the brush"
            )


def _parsed(kind: TypeAdapter[list[T]], annotation: Annotation, control: str) -> list[T]:
    """What was made with one control of the interface."""
    try:
        return kind.validate_python([part for part in annotation.parts if part.get("from_name") == control])
    except ValidationError as error:
        raise ReviewError(
            f"its {control} has an unexpected shape ({first_problem(error)}); draw it again"
        ) from error


def _drawn(region: _Region, shape: tuple[int, int]) -> np.ndarray:
    size = region.original_height, region.original_width
    if size != shape:
        raise ReviewError(
            f"a region is of an image of {size[0]}x{size[1]} pixels, the draft {shape[0]}x{shape[1]}"
        )
    return decode_brush(region.value.rle, *shape)


def _class_of(region: _Region, classes: Sequence[str]) -> int:
    labels = region.value.brushlabels
    if len(labels) != 1 or labels[0] not in classes:
        raise ReviewError(
            f"a region has the labels {str(labels)[:200]}: it needs one of {', '.join(classes)}"
        )
    return classes.index(labels[0])
