"""What driver and workers tell each other: JSON, so that neither unpickles what the other made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from segpipe.labeling.items import FinishedShard, Legs, PlannedImage, Threads
from segpipe.labeling.lease import Moment
from segpipe.labeling.place import Place
from segpipe.manifests.schema import Row


@dataclass(frozen=True)
class Shard:
    """A shard of the plan that is to be labelled."""

    number: int
    images: tuple[PlannedImage, ...]


@dataclass(frozen=True)
class Grant:
    """A lease: the worker may write until so many seconds after the moment that it told itself."""

    since: Moment
    seconds: float


@dataclass(frozen=True)
class Task:
    """What a worker is to work with; versions: what it must have, as the driver has it.

    digest: of the model; policy: its JSON; settings: LabelSettings as JSON.
    """

    url: str
    digest: str | None
    policy: str | None
    device: str
    settings: str
    place: Place
    versions: dict[str, str]


@dataclass(frozen=True)
class Ready:
    """A worker that has loaded the model: its clock, how many shards it wants at once, its threads."""

    now: Moment
    depth: int
    threads: Threads


@dataclass(frozen=True)
class Alive:
    """What a worker answers to a grant: its clock, how many images it has done, what it has logged since."""

    now: Moment
    done: int
    said: tuple[tuple[int, str], ...]


def encode(message: Any) -> str:
    """A dataclass as JSON."""
    return json.dumps(asdict(message), default=datetime.isoformat)


def decode_shard(text: str) -> Shard:
    """A Shard from its JSON."""
    told = json.loads(text)
    return Shard(told["number"], tuple(PlannedImage(**image) for image in told["images"]))


def decode_grant(text: str) -> Grant:
    """A Grant from its JSON."""
    told = json.loads(text)
    return Grant(Moment(**told["since"]), told["seconds"])


def decode_task(text: str) -> Task:
    """A Task from its JSON."""
    told = json.loads(text)
    place = told["place"]
    place["stamps_from"] = datetime.fromisoformat(place["stamps_from"])
    return Task(**told | {"place": Place(**place)})


def decode_ready(told: dict[str, Any]) -> Ready:
    """A Ready from its JSON's values."""
    return Ready(Moment(**told["now"]), told["depth"], Threads(**told["threads"]))


def decode_alive(text: str) -> Alive:
    """An Alive from its JSON."""
    told = json.loads(text)
    return Alive(Moment(**told["now"]), told["done"], tuple((level, line) for level, line in told["said"]))


def decode_finished(told: dict[str, Any]) -> FinishedShard:
    """A FinishedShard from its JSON's values."""
    return FinishedShard(
        told["shard"],
        tuple(_row(row) for row in told["rows"]),
        told["seconds"],
        Legs(**told["legs"]),
        Threads(**told["threads"]),
    )


def _row(told: dict[str, Any]) -> Row:
    return Row(**told | {"labeled_at": datetime.fromisoformat(told["labeled_at"])})
