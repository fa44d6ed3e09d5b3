"""What storage knows of an object, and what every kind of storage can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from segpipe.errors import TooLargeError
from segpipe.storage.deadline import Deadline
from segpipe.storage.retry import ChangedError, failure

TEMPORARY_PREFIX = ".segpipe-tmp-"


@dataclass(frozen=True)
class StoredObject:
    """One listed object; `key` is relative to the listed root, `size` in bytes.

    storage_class is S3's, "" where it is the usual one or there are none.
    """

    uri: str
    key: str
    etag: str
    size: int
    storage_class: str = ""


@dataclass(frozen=True)
class Blob:
    """An object's bytes and the ETag of exactly these bytes."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Bounds:
    """What reading one object may cost: bytes (None: any number) and time."""

    max_bytes: int | None
    deadline: Deadline

    def require_size(self, uri: str, size: int) -> None:
        """Raises TooLargeError when an object of this size is over max_bytes."""
        if self.max_bytes is not None and size > self.max_bytes:
            raise failure(TooLargeError, f"{uri} has more than {self.max_bytes} bytes")


class Store(Protocol):
    """A kind of storage; every call may fail with an error of its own, which storage/retry.py explains."""

    def list(self, root: str) -> Iterator[StoredObject]: ...
    def folders(self, root: str) -> Iterable[str]: ...
    def read(self, uri: str, bounds: Bounds) -> Blob: ...
    def etag(self, uri: str) -> str: ...
    def put(self, uri: str, data: bytes) -> None: ...
    def create(self, uri: str, data: bytes, writer: str) -> None: ...
    def exists(self, uri: str) -> bool: ...
    def delete(self, uri: str) -> None: ...


def unchanged(data: bytes, before: str, after: str, size: int | None) -> Blob:
    """The bytes under their ETag. Raises ChangedError when it, or the size, is not that of both looks."""
    if before != after or (size is not None and len(data) != size):
        raise ChangedError("it was written while it was read")
    return Blob(data, before)
