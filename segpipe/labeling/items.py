"""What an image is on its way through labelling, and what a model must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segpipe.errors import SegpipeError
from segpipe.image_range import ImageRange
from segpipe.manifests.schema import Row
from segpipe.tiles import Tiling

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import AbstractContextManager

    from segpipe.confidence.policy import Policy
    from segpipe.models.labeler import Labeled

LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


class ImageLabeler(Protocol):
    """A loaded model: what labelling needs of segpipe.models.labeler.Labeler.

    prepare and finish work on one image, judge on a batch, in compute_threads, of which there are
    computed_at_once; no more than judged_at_once may judge or finish. What prepare returns is for judge alone
    to know, what judge returns for finish. Images of more than pixels_at_once, if it is not None, do not go
    together.

    Where gathered_images is not None that many images, of several threads, go together through judge_at_size
    in one of the judged_at_once device_threads, and finish makes no use of the device.
    """

    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def model_id(self) -> str: ...
    @property
    def digest(self) -> str | None: ...
    @property
    def policy(self) -> Policy | None: ...
    @property
    def tiling(self) -> Tiling | None: ...
    @property
    def image_range(self) -> ImageRange | None: ...
    @property
    def smallest_decode(self) -> tuple[int, int]: ...
    @property
    def pixels_at_once(self) -> int | None: ...
    @property
    def computed_at_once(self) -> int: ...
    @property
    def judged_at_once(self) -> int: ...
    @property
    def gathered_images(self) -> int | None: ...
    def device_threads(self) -> AbstractContextManager[ThreadPoolExecutor]: ...
    def compute_threads(self) -> AbstractContextManager[ThreadPoolExecutor]: ...
    def prepare(self, image: np.ndarray) -> Any: ...
    def judge(self, prepared: Sequence[Any]) -> Sequence[Any]: ...
    def judge_at_size(self, prepared: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Sequence[Any]: ...
    def finish(self, judged: Any, height: int, width: int) -> Labeled: ...


@dataclass(frozen=True)
class Target:
    """Where masks go and whose name their rows carry; require_claim raises when the run must not write.

    confidence_maps_root: where confidence maps go; None: they are not wanted. No row is stamped before
    stamps_from, whatever the clock says. require_source raises when all images are gone.
    """

    masks_root: str
    confidence_maps_root: str | None
    run_id: str
    model_id: str
    palette: np.ndarray
    require_claim: Callable[[], None]
    stamps_from: datetime = LONG_AGO
    require_source: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class PlannedImage:
    """One row of a plan: etag and bytes as listed; mask_key is relative to the model's mask folder."""

    shard: int
    image_uri: str
    image_etag: str
    image_bytes: int
    mask_key: str


@dataclass(frozen=True)
class SeenImage:
    """A planned image and what is known of it so far.

    etag and bytes as listed, then as read; height and width as displayed, None until it is decoded.
    """

    planned: PlannedImage
    etag: str
    bytes: int
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class DecodedPixels:
    """pixels is what the labeler prepared, height and width are those of the image as displayed;
    nearly_black as in images.DecodedImage."""

    pixels: Any
    height: int
    width: int
    nearly_black: bool = False


@dataclass(frozen=True)
class File:
    """An object to be written."""

    uri: str
    data: bytes


@dataclass(frozen=True)
class EncodedImage:
    """The files of a labelled image, and the row that is true once they are stored."""

    files: tuple[File, ...]
    row: Row


@dataclass(frozen=True)
class Legs:
    """Seconds per leg of the work; legs that run in several threads at once can exceed the wall time.

    decode includes the resizing to the networks' size, infer the resizing of the mask to the image's. device
    is what threads waited for a place on the device, wait what the run spent idle, waiting for finished
    images.
    """

    read: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    device: float = 0.0
    wait: float = 0.0

    def __add__(self, other: Legs) -> Legs:
        return Legs(**{leg: seconds + getattr(other, leg) for leg, seconds in vars(self).items()})


def legs_of(seconds: Mapping[str, float]) -> Legs:
    """Legs as a part of any version tells them: one that is unknown is left out, one that is absent is 0."""
    return Legs(**{field.name: float(seconds.get(field.name, 0)) for field in fields(Legs)})


@dataclass(frozen=True)
class Outcome:
    """A finished image: its row, the time it took, and what went wrong with it, if anything did.

    Nothing is decided yet: the row of a labelled image says review, no_policy, until decisions.decide.
    """

    row: Row
    legs: Legs
    error: Exception | None


@dataclass(frozen=True)
class Threads:
    """How many threads move images and masks, and how many compute."""

    moving: int
    computing: int


@dataclass(frozen=True)
class FinishedShard:
    """A shard's undecided rows, in the order of the plan, the time they took, and in how many threads."""

    shard: int
    rows: tuple[Row, ...]
    seconds: float
    legs: Legs
    threads: Threads


def per_thread(legs: Legs, threads: Threads) -> Legs:
    """The seconds each leg would take a single one of its threads; nobody works while the run waits."""
    return Legs(
        read=legs.read / threads.moving,
        decode=legs.decode / threads.computing,
        infer=legs.infer / threads.computing,
        encode=legs.encode / threads.computing,
        write=legs.write / threads.moving,
        device=legs.device / threads.computing,
    )


def bottleneck(occupied: Legs) -> str | None:
    """The longest leg of the busier kind of threads, by seconds per thread; None when nothing was done.

    Who waits for the device waits for what it infers.
    """
    moving = {"read": occupied.read, "write": occupied.write}
    inferring = occupied.infer + occupied.device
    computing = {"decode": occupied.decode, "infer": inferring, "encode": occupied.encode}
    busier = max(computing, moving, key=lambda legs: sum(legs.values()))
    name, seconds = max(busier.items(), key=lambda leg: leg[1])
    return name if seconds > 0 else None


def one_line(error: Exception) -> str:
    """An error as the one line that a row or a log holds."""
    said = " ".join(str(error).split()) or "no message"
    return said if isinstance(error, SegpipeError) else f"{type(error).__name__}: {said}"
