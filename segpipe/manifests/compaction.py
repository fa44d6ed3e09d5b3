"""`segpipe compact`: copy many small manifest parts into few large files, without touching the parts.

Why the parts stay: a plain reader lists the folder and then reads each object. Whatever order of creating one
object and removing many is chosen, some moment between two requests shows it a row twice or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.concurrency import ordered_map
from segpipe.errors import AlreadyExistsError, NotFoundError
from segpipe.manifests.batches import large_batches
from segpipe.manifests.chain import part_digest
from segpipe.manifests.compacted import (
    CopiedPart,
    compacted_key,
    compacted_root,
    copied_metadata,
    current_view,
    parts_metadata,
)
from segpipe.manifests.parts import manifests_root
from segpipe.manifests.store import MANIFEST_SCHEMA, part_rows
from segpipe.redaction import redact
from segpipe.storage.retry import explained

if TYPE_CHECKING:
    from segpipe.config import CompactSettings

_ROW_GROUP_ROWS = 65_536
_READERS = 8


@dataclass(frozen=True)
class CompactionSummary:
    """What a compaction did: files it created, parts and rows copied into them.

    total_files and waiting_parts are what segpipe reads from now on: all compacted files, and the parts that
    none of them copies yet.
    """

    output: str
    files: int
    parts: int
    rows: int
    total_files: int
    waiting_parts: int


def compact(output: str, settings: CompactSettings) -> CompactionSummary:
    """Copy the parts that wait into new compacted files, one atomic create each; leaves the parts alone.

    May run next to labelling runs, readers and other compactions, and be killed at any moment.
    Raises NotFoundError when OUTPUT holds no manifest, StorageError when it cannot be read or written.
    """
    output = storage.normalise(output)
    view = current_view(output)
    if not view.files and not view.parts:
        raise NotFoundError(
            f"there is no manifest under {redact(output)}: give the OUTPUT of a labelling run"
        )
    files = parts = rows = 0
    while len(view.parts) >= settings.min_parts:
        chosen = _first_parts(view.parts, settings.file_megabytes * 1_000_000)
        data, n_rows = _copy(output, chosen)
        created = _create_file(output, view.next_number, data)
        if created:
            files, parts, rows = files + 1, parts + len(chosen), rows + n_rows
        view = current_view(output)
        if created and any(part.key == chosen[0] for part in view.parts):
            break  # parts that are edited all the time would be copied all the time
    return CompactionSummary(output, files, parts, rows, len(view.files), len(view.parts))


def _first_parts(waiting: Sequence[storage.StoredObject], max_bytes: int) -> list[str]:
    """The keys of the first waiting parts, as many as `max_bytes` hold but at least one."""
    ends = list(accumulate(part.size for part in waiting))
    return [part.key for part, end in zip(waiting, ends, strict=True) if end <= max(max_bytes, ends[0])]


def _copy(output: str, parts: list[str]) -> tuple[bytes, int]:
    """One Parquet file with the rows of these parts, and how many they are; streamed."""
    sink, n_rows = pa.BufferOutputStream(), 0
    copied: dict[str, CopiedPart] = {}
    schema = MANIFEST_SCHEMA.with_metadata(parts_metadata(parts))
    with (
        explained(compacted_root(output)),
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        for batch in large_batches(_rows(output, parts, copied), _ROW_GROUP_ROWS):
            writer.write_table(batch, row_group_size=_ROW_GROUP_ROWS)
            n_rows += batch.num_rows
        writer.add_key_value_metadata(copied_metadata(copied))
    return sink.getvalue().to_pybytes(), n_rows


def _rows(output: str, parts: list[str], copied: dict[str, CopiedPart]) -> Iterator[pa.RecordBatch]:
    """The parts' rows; `copied` is told of each part, so that what it says of one is about these rows."""

    def read(key: str) -> tuple[str, storage.Blob]:
        return key, storage.read(storage.join(manifests_root(output), key))

    with ThreadPoolExecutor(_READERS) as pool:
        for key, blob in ordered_map(pool, read, parts, 2 * _READERS):
            copied[key] = CopiedPart(len(blob.data), blob.etag, part_digest(blob.data))
            yield from part_rows(key, blob.data, manifests_root(output)).to_batches()


def _create_file(output: str, number: int, data: bytes) -> bool:
    """Whether the file was created; False when another compaction has taken the number meanwhile."""
    try:
        storage.create(storage.join(compacted_root(output), compacted_key(number)), data)
    except AlreadyExistsError:
        return False
    return True
