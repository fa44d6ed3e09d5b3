"""Compacted copies of manifest parts, and which rows to read from where.

A compacted file `manifests_compacted/<number>.parquet` is created once, whole or not at all, never changed.
It names in its own metadata the parts it copies, so it is data and commit record in one object: there is no
second step that a crash could leave undone. Files are numbered without gaps; two compactions that prepare the
same number meet at the exclusive create, and one of them starts over. The parts stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.errors import StorageError
from segpipe.manifests.parts import list_parquet, list_parts

FOLDER = "manifests_compacted"
PARTS_KEY = b"segpipe.parts"
_READERS = 16


@dataclass(frozen=True)
class CompactedFile:
    """A compacted file: its key below the folder, and the keys (below manifests/) of the parts it copies."""

    key: str
    parts: frozenset[str]


@dataclass(frozen=True)
class ManifestView:
    """What to read so that every part counts once: whole compacted files, and the parts none of them copies.

    next_number is the number of the compacted file to be created next.
    """

    files: tuple[CompactedFile, ...]
    parts: tuple[storage.StoredObject, ...]
    next_number: int


def compacted_root(output: str) -> str:
    """The folder that holds the compacted files of OUTPUT and nothing else."""
    return storage.join(output, FOLDER)


def compacted_key(number: int) -> str:
    """The name of the compacted file with this number."""
    return f"{number:08d}.parquet"


def current_view(output: str) -> ManifestView:
    """The compacted files that mirror the parts, and the parts beyond them; raises StorageError.

    The parts are listed last: every part that a compacted file names was there before that file.
    """
    files = _read_files(output)
    parts = list_parts(output)
    used = tuple(_mirrors(files, {part.key for part in parts}))
    copied = frozenset().union(*(file.parts for file in used))
    beyond = tuple(part for part in parts if part.key not in copied)
    return ManifestView(used, beyond, _next_number(files))


def _mirrors(files: list[CompactedFile], present: set[str]) -> Iterator[CompactedFile]:
    """The files whose parts are all there, none twice: the parts are the truth."""
    copied: set[str] = set()
    for file in files:
        if file.parts <= present and copied.isdisjoint(file.parts):
            copied |= file.parts
            yield file


def _next_number(files: list[CompactedFile]) -> int:
    return 1 + max((int(file.key.removesuffix(".parquet")) for file in files), default=-1)


def _read_files(output: str) -> list[CompactedFile]:
    found = [item for item in list_parquet(compacted_root(output)) if item.key[:-8].isdecimal()]
    if not found:
        return []
    filesystem, root = storage.arrow_filesystem(compacted_root(output))
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda item: _read_file(filesystem, root, item.key), found))


def _read_file(filesystem: pa.fs.FileSystem, root: str, key: str) -> CompactedFile:
    try:
        metadata = pq.read_schema(f"{root}/{key}", filesystem=filesystem).metadata or {}
        return CompactedFile(key, frozenset(json.loads(metadata[PARTS_KEY])))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise StorageError(
            f"{root}/{key} is no compacted manifest ({type(error).__name__}): remove it, it holds copies only"
        ) from error
