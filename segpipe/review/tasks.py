"""The tasks of a project as Label Studio lists and exports them; anybody may have made them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from segpipe.review.annotations import Number

ITEM_ID = "segpipe_item_id"
IMAGE_URI = "image"
FROM_SCRATCH = "segpipe_from_scratch"  # in the data of a task that has no draft, and is to have none

_NUMBER = TypeAdapter(Number)


@dataclass(frozen=True)
class Refusal:
    """An answer that is not taken: where it is and why; task and annotation are their numbers, if known."""

    project: str
    task: int | None
    annotation: int | None
    reason: str


@dataclass(frozen=True)
class ListedTask:
    """One task without what was drawn; item: what it asks about, None when it is none of ours.

    is_answered: somebody has submitted or skipped it; has_draft: as far as the server says; from_scratch: it
    is to have none.
    """

    number: int
    item: str | None
    is_answered: bool
    has_draft: bool
    from_scratch: bool = False


class _Data(BaseModel):
    segpipe_item_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    image: Annotated[str, Field(max_length=10_000)]
    segpipe_from_scratch: bool = False


class _Exported(BaseModel):
    id: Number
    data: Any = None
    annotations: list[Any]


@dataclass(frozen=True)
class AnsweredTask:
    """A task with its annotations, each still unread; item and image are None when it is none of ours.

    from_scratch: it had no draft.
    """

    number: int
    item: str | None
    image_uri: str | None
    annotations: tuple[Any, ...]
    from_scratch: bool


def number_of(found: object) -> int | None:
    """The number of a task or annotation; None where there is none."""
    try:
        return _NUMBER.validate_python(found.get("id") if isinstance(found, dict) else None)
    except ValidationError:
        return None


def listed_task(row: object) -> ListedTask | None:
    """A row of the list of tasks; None for one without a number, with which nothing can be done."""
    number = number_of(row)
    if number is None or not isinstance(row, dict):
        return None
    data = row.get("data")
    item = data.get(ITEM_ID) if isinstance(data, dict) else None
    return ListedTask(
        number,
        item if isinstance(item, str) and item else None,
        bool(row.get("total_annotations") or row.get("cancelled_annotations")),
        row.get("total_predictions") != 0,  # a server that does not say may have it
        isinstance(data, dict) and data.get(FROM_SCRATCH) is True,
    )


def listed_tasks(rows: Iterable[object]) -> list[ListedTask]:
    """The rows that are tasks."""
    return [task for row in rows if (task := listed_task(row))]


def answered_task(row: object) -> AnsweredTask | None:
    """A task of the export; None for another shape."""
    try:
        task = _Exported.model_validate(row)
    except ValidationError:
        return None
    data = _data(task.data)
    if data is None:
        return AnsweredTask(task.id, None, None, tuple(task.annotations), False)
    item, image, bare = data.segpipe_item_id, data.image, data.segpipe_from_scratch
    return AnsweredTask(task.id, item, image, tuple(task.annotations), bare)


def _data(found: object) -> _Data | None:
    try:
        return _Data.model_validate(found)
    except ValidationError:
        return None
