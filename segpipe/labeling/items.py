"""What an image is at each stage of its way through labelling, and what a model must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segpipe.errors import SegpipeError
from segpipe.labeling.legs import Legs
from segpipe.manifests.schema import FailureReason, Row

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import AbstractContextManager

    from segpipe.confidence.policy import Policy
    from segpipe.models.labeler import Labeled


class ImageLabeler(Protocol):
    """A loaded model: what labelling needs of segpipe.models.labeler.Labeler.

    prepare and finish work on one image, judge on a batch, in compute_threads, of which there are
    computed_at_once; no more than judged_at_once may judge or finish. What judge returns is for finish alone
    to know.
    """

    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def model_id(self) -> str: ...
    @property
    def policy(self) -> Policy | None: ...
    @property
    def smallest_decode(self) -> tuple[int, int]: ...
    @property
    def computed_at_once(self) -> int: ...
    @property
    def judged_at_once(self) -> int: ...
    def compute_threads(self) -> AbstractContextManager[ThreadPoolExecutor]: ...
    def prepare(self, image: np.ndarray) -> np.ndarray: ...
    def judge(self, prepared: Sequence[np.ndarray]) -> Sequence[Any]: ...
    def finish(self, judged: Any, height: int, width: int) -> Labeled: ...


@dataclass(frozen=True)
class File:
    """An object to be written."""

    uri: str
    data: bytes


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
    """A planned image and what was really read: its etag, and its size in bytes."""

    planned: PlannedImage
    etag: str
    bytes: int


@dataclass(frozen=True)
class FetchedImage:
    """The bytes of an image's object."""

    seen: SeenImage
    data: bytes
    legs: Legs


@dataclass(frozen=True)
class ReadImage:
    """pixels is what the labeler prepared, height and width are those of the image as displayed."""

    seen: SeenImage
    pixels: np.ndarray
    height: int
    width: int
    legs: Legs


@dataclass(frozen=True)
class JudgedImage:
    """judged is what the labeler's judge said, which its finish makes a mask of."""

    seen: SeenImage
    judged: Any
    height: int
    width: int
    legs: Legs


@dataclass(frozen=True)
class FinishedImage:
    """The mask at the image's own size, and the numbers on it."""

    seen: SeenImage
    height: int
    width: int
    labeled: Labeled
    legs: Legs


@dataclass(frozen=True)
class EncodedImage:
    """The files to be stored, and the row that is true once they are."""

    seen: SeenImage
    height: int
    width: int
    files: tuple[File, ...]
    row: Row
    legs: Legs


@dataclass(frozen=True)
class FailedImage:
    """An image that gets no mask; height and width only if they were found out."""

    seen: SeenImage
    height: int | None
    width: int | None
    reason: FailureReason
    error: Exception
    legs: Legs


@dataclass(frozen=True)
class Outcome:
    """A finished image: its row, the time it took, and what went wrong with it, if anything did."""

    row: Row
    legs: Legs
    error: Exception | None


def one_line(error: Exception) -> str:
    """An error as the one line that a row or a log holds."""
    said = " ".join(str(error).split()) or "no message"
    return said if isinstance(error, SegpipeError) else f"{type(error).__name__}: {said}"
