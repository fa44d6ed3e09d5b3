"""Compacted copies of manifest parts, and which rows to read from where.

A compacted file `manifests_compacted/<number>.parquet` is created once, whole or not at all, never changed.
It names in its own metadata the parts it copies, so it is data and commit record in one object: there is no
second step that a crash could leave undone. Files are numbered without gaps; two compactions that prepare the
same number meet at the exclusive create, and one of them starts over. The parts stay where they are.

The file also notes what it copied: each part's size, ETag and SHA-256. Where a part is listed with another
size or ETag the copy no longer counts, so that what segpipe reads is what anyone reads from the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.errors import StorageError
from segpipe.manifests.parts import ERRORS_OF_CONTENT, is_of_system, list_parquet, list_parts
from segpipe.storage.retry import explained

FOLDER = "manifests_compacted"
_PARTS, _COPIED = "segpipe.parts", "segpipe.copied"
_READERS = 16


@dataclass(frozen=True)
class CopiedPart:
    """A part as it was when it was copied: bytes, ETag and SHA-256."""

    size: int
    etag: str
    digest: str


@dataclass(frozen=True)
class CompactedFile:
    """A compacted file: its key below the folder, and the parts it copies by their keys below manifests/, in
    the order of its rows; None for a part of which an earlier version noted the key alone."""

    key: str
    parts: dict[str, CopiedPart | None]


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


def parts_metadata(parts: Iterable[str]) -> dict[str, str]:
    """Which parts a compacted file copies, as its metadata."""
    return {_PARTS: json.dumps(list(parts))}


def copied_metadata(parts: Mapping[str, CopiedPart]) -> dict[str, str]:
    """What those parts were when they were copied, as its metadata."""
    return {_COPIED: json.dumps({key: asdict(part) for key, part in parts.items()})}


def current_view(output: str) -> ManifestView:
    """The compacted files that mirror the parts, and the parts beyond them; raises StorageError.

    The parts are listed last: every part that a compacted file names was there before that file.
    """
    files = read_files(output)
    parts = list_parts(output)
    used = tuple(_mirrors(files, {part.key: part for part in parts}))
    copied = {key for file in used for key in file.parts}
    beyond = tuple(part for part in parts if part.key not in copied)
    return ManifestView(used, beyond, _next_number(files))


def _mirrors(
    files: list[CompactedFile], present: Mapping[str, storage.StoredObject]
) -> Iterator[CompactedFile]:
    """The files whose parts are all there as they were copied, none twice: the parts are the truth."""
    copied: set[str] = set()
    for file in files:
        as_copied = all(_is_as_copied(present.get(key), part) for key, part in file.parts.items())
        if as_copied and copied.isdisjoint(file.parts):
            copied |= file.parts.keys()
            yield file


def _is_as_copied(listed: storage.StoredObject | None, copied: CopiedPart | None) -> bool:
    if listed is None or copied is None:
        return listed is not None
    return (listed.size, listed.etag) == (copied.size, copied.etag)


def _next_number(files: list[CompactedFile]) -> int:
    return 1 + max((int(file.key.removesuffix(".parquet")) for file in files), default=-1)


def read_files(output: str) -> list[CompactedFile]:
    """Every compacted file of OUTPUT, by number. StorageError, also for a file that is none."""
    found = [item for item in list_parquet(compacted_root(output)) if item.key[:-8].isdecimal()]
    if not found:
        return []
    filesystem, root = storage.arrow_filesystem(compacted_root(output))
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda item: _read_file(filesystem, f"{root}/{item.key}", item), found))


def _read_file(filesystem: pa.fs.FileSystem, path: str, item: storage.StoredObject) -> CompactedFile:
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem).metadata or {}
        return CompactedFile(item.key, _copied_parts(metadata))
    except ERRORS_OF_CONTENT as error:
        if is_of_system(error):
            with explained(item.uri):
                raise
        raise StorageError(
            f"{item.uri} is no compacted manifest ({type(error).__name__}): remove it, it holds copies only"
        ) from error


def _copied_parts(metadata: Mapping[bytes, bytes]) -> dict[str, CopiedPart | None]:
    copied = json.loads(metadata.get(_COPIED.encode(), b"{}"))
    noted = {key: CopiedPart(**part) for key, part in copied.items()}
    return {key: noted.get(key) for key in json.loads(metadata[_PARTS.encode()])}
