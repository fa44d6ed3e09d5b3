"""Objects as pyarrow opens them: small ones read whole, large ones in ranges, each within its deadline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
from fsspec.spec import AbstractBufferedFile
from pyarrow.fs import FSSpecHandler

from segpipe.errors import TooLargeError
from segpipe.storage.objects import Blob
from segpipe.storage.retry import guarded

SMALL_BYTES = 8_000_000


class Ranged(Protocol):
    """Storage of which a part of an object can be read."""

    def length(self, uri: str) -> int: ...
    def read_range(self, uri: str, start: int, end: int) -> bytes: ...


class BoundedHandler(FSSpecHandler):
    """Opens for reading what `uri_of` makes of pyarrow's paths; every other call is fsspec's."""

    def __init__(
        self, filesystem: Any, read: Callable[[str, int], Blob], store: Ranged, uri_of: Callable[[str], str]
    ) -> None:
        super().__init__(filesystem)
        self._read, self._store, self._uri_of = read, store, uri_of

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Raises NotFoundError, StorageError."""
        uri = self._uri_of(path)
        try:
            return pa.BufferReader(self._read(uri, SMALL_BYTES).data)
        except TooLargeError:
            return pa.PythonFile(_RangedFile(self.fs, path, uri, self._store), mode="r")

    open_input_stream = open_input_file


class _RangedFile(AbstractBufferedFile):
    """A large object, read block by block."""

    def __init__(self, filesystem: Any, path: str, uri: str, store: Ranged) -> None:
        self._fetch_range = partial(_range, uri, store)
        super().__init__(filesystem, path, size=guarded(uri, partial(store.length, uri)))


def _range(uri: str, store: Ranged, start: int, end: int) -> bytes:
    return guarded(uri, partial(store.read_range, uri, start, end))
