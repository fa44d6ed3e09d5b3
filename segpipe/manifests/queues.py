"""Which masks each queue chose for people, and by which chance: numbered JSON records under OUTPUT/queues.

A record is written before its masks are sent. So what a push that was killed had drawn is drawn: the next one
sends it. Of two pushes at once one makes its queue again, knowing what the other has drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter

from segpipe import storage
from segpipe.numbered_records import add_record, read_records

FOLDER = "queues"
SCHEMA_VERSION = 1
_RESTORE = "restore it; without it nobody knows by which chance masks were shown"

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Number = Annotated[int, Field(ge=1, le=10**8)]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Frame:
    """Masks to review of one model that neither this queue nor one before it had chosen or drawn: `waiting`,
    and how many of them this queue drew at random."""

    waiting: _Count
    drawn: _Count

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.drawn > self.waiting:
            raise ValueError(f"{self.drawn} masks drawn of {self.waiting}")


@dataclass(frozen=True)
class Selection:
    """What one queue added to those before it.

    drawn: by item id, the number of the first queue that could have drawn it; chosen: item ids that came by
    the order asked for, whether they were drawn (earlier or now) or not; frames: by model id; seen: the
    parts, shards by run id, whose masks to review this queue was the first to see; made_at: ISO 8601 in UTC.
    """

    drawn: dict[str, _Number]
    chosen: tuple[str, ...]
    frames: dict[str, Frame]
    seen: dict[str, tuple[_Count, ...]]
    made_at: str

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if (drawn := sum(frame.drawn for frame in self.frames.values())) != len(self.drawn):
            raise ValueError(f"{len(self.drawn)} masks are drawn, and {drawn} of the frames")


@dataclass(frozen=True)
class Draw:
    """How a mask came by chance: the first queue that could have drawn it, and the one that did."""

    since: int
    number: int


@dataclass(frozen=True)
class Selected:
    """What all queues of OUTPUT together have selected, by the number of the queue."""

    selections: Mapping[int, Selection]

    @property
    def next_number(self) -> int:
        """Of the next queue's record."""
        return max(self.selections, default=0) + 1

    @cached_property
    def draws(self) -> dict[str, Draw]:
        """How each mask that was drawn was drawn, by item id; of two records that name one the first."""
        found: dict[str, Draw] = {}
        for number, selection in self.selections.items():
            for item, since in selection.drawn.items():
                found.setdefault(item, Draw(since, number))
        return found

    @cached_property
    def chosen(self) -> frozenset[str]:
        """The item ids that came by the order asked for."""
        return frozenset(item for selection in self.selections.values() for item in selection.chosen)

    @cached_property
    def first_seen(self) -> dict[tuple[str, int], int]:
        """By (run id, shard) of each part seen, the first queue that saw it."""
        found: dict[tuple[str, int], int] = {}
        for number, selection in self.selections.items():
            for run_id, shards in selection.seen.items():
                for shard in shards:
                    found.setdefault((run_id, shard), number)
        return found

    def table(self) -> pa.Table:
        """An item_id a row, whether it was `drawn`, and whether it was `chosen`."""
        items = sorted(self.draws.keys() | self.chosen)
        return pa.table(
            {
                "item_id": pa.array(items, pa.string()),
                "drawn": pa.array([item in self.draws for item in items], pa.bool_()),
                "chosen": pa.array([item in self.chosen for item in items], pa.bool_()),
            }
        )

    def places(self) -> pa.Table:
        """An item_id a row, and the first queues that have it as drawn and as chosen, `drawn_by` and
        `chosen_by` (null: none has)."""
        chosen_by: dict[str, int] = {}
        for number, selection in self.selections.items():
            for item in selection.chosen:
                chosen_by.setdefault(item, number)
        items = sorted(self.draws.keys() | chosen_by.keys())
        drawn_by = [draw.number if (draw := self.draws.get(item)) else None for item in items]
        return pa.table(
            {
                "item_id": pa.array(items, pa.string()),
                "drawn_by": pa.array(drawn_by, pa.int64()),
                "chosen_by": pa.array([chosen_by.get(item) for item in items], pa.int64()),
            }
        )

    def parts(self) -> pa.Table:
        """A run_id and shard a row, and `since`, the first queue that saw the part."""
        rows = [
            {"run_id": run_id, "shard": shard, "since": number}
            for (run_id, shard), number in self.first_seen.items()
        ]
        types = [("run_id", pa.string()), ("shard", pa.int64()), ("since", pa.int64())]
        return pa.Table.from_pylist(rows, pa.schema(types))

    def probability(self, model_id: str, since: int) -> float:
        """The chance, 0 to 1, that the queues so far drew a mask of the model that was there from `since` on.

        Each queue draws from a frame without replacement, so it leaves a mask out with 1 - drawn / waiting.
        """
        left_out = math.prod(
            1 - frame.drawn / frame.waiting
            for number, selection in self.selections.items()
            if number >= since and (frame := selection.frames.get(model_id)) and frame.waiting
        )
        return 1 - left_out


_SELECTION = TypeAdapter(Selection)


def read_selected(output: str) -> Selected:
    """What the queues of OUTPUT have selected. StorageError, also for a record that cannot be read."""
    folder = storage.join(output, FOLDER)
    return Selected(read_records(folder, _SELECTION, SCHEMA_VERSION, _RESTORE))


def add_selection(output: str, number: int, selection: Selection) -> None:
    """Record what a queue adds. AlreadyExistsError when another was quicker, StorageError."""
    add_record(storage.join(output, FOLDER), number, asdict(selection), SCHEMA_VERSION)


def by_run(parts: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Shards by run id, in order."""
    found: dict[str, list[int]] = {}
    for run_id, shard in sorted(parts):
        found.setdefault(run_id, []).append(shard)
    return {run_id: tuple(shards) for run_id, shards in found.items()}
