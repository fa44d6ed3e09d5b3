"""What an engine is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from segpipe.labeling.items import FinishedShard, ImageLabeler, PlannedImage
from segpipe.labeling.place import Place

if TYPE_CHECKING:
    from segpipe.config import LabelSettings


class HeldClaim(Protocol):
    """What an engine needs of segpipe.labeling.claim.Claim."""

    def require_alive(self) -> None: ...
    def seconds_left(self) -> float: ...
    def let_expire(self) -> None: ...
    def standing_still(self, seconds: float) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class ServedModel:
    """Where other processes find the model; load(url, digest, policy as JSON or None, device) gives it there.

    load is a function of a module that they can import. It raises ModelError for a model of another digest.
    """

    url: str
    load: Callable[[str, str | None, str | None, str], ImageLabeler]


@dataclass(frozen=True)
class Work:
    """The pending images of a run, in the order of their shards, and all that labelling them takes.

    advance is told of so many more images that are done. served: None where only this process has the model.
    """

    images: Iterable[PlannedImage]
    labeler: ImageLabeler
    served: ServedModel | None
    place: Place
    claim: HeldClaim
    settings: LabelSettings
    advance: Callable[[int], None]


# Yields each shard once all its masks are stored, the first of the plan first, then in any order; raises
# RunError when too many images fail or the claim is lost.
Engine = Callable[[Work], Generator[FinishedShard, None, None]]
