"""Manifest parts on storage: one Parquet object per shard, created once, never changed or removed.

`manifests/` is the truth. What segpipe itself reads comes from the compacted copies where there are some
(manifests/compaction.py), and from the parts where there are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import SubTreeFileSystem

from segpipe import storage
from segpipe.errors import AlreadyExistsError, StorageError
from segpipe.manifests import compacted
from segpipe.manifests.chain import part_digest
from segpipe.manifests.parts import (
    classes_in,
    list_parquet,
    list_parts,
    manifests_root,
    rows_in,
    telling_damage,
)
from segpipe.manifests.schema import ROW_SCHEMA

RUN_DATE = pa.field("run_date", pa.date32())
MANIFEST_SCHEMA = ROW_SCHEMA.append(RUN_DATE)
_RUN_DATE_FOLDER = re.compile(r"run_date=(\d{4}-\d\d-\d\d)/")
_NEVER_NULL = ("image_uri", "model_id", "decision", "run_id", "labeled_at")
_PARTS_AT_ONCE, _BYTES_AT_ONCE = 512, 32 * 2**20
_BATCH_ROWS, _READAHEAD = 32_768, 4  # their product bounds the memory of a scan


def run_date_folder(output: str, run_date: date) -> str:
    """The folder of the parts of the runs planned on one UTC day."""
    return storage.join(manifests_root(output), f"run_date={run_date.isoformat()}")


def part_uri(output: str, run_date: date, run_id: str, shard: int) -> str:
    """The one place where a shard's part can be; that it exists means the shard is done."""
    return storage.join(run_date_folder(output, run_date), f"{run_id}-{shard:05d}.parquet")


def commit_part(output: str, run_date: date, run_id: str, shard: int, table: pa.Table) -> str | None:
    """Create a shard's part, whole or not at all: its SHA-256; None when the shard was already done.

    Raises StorageError when the part cannot be written.
    """
    content = table_bytes(table)
    try:
        storage.create(part_uri(output, run_date, run_id, shard), content)
    except AlreadyExistsError:
        return None
    return part_digest(content)


def table_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def list_parts_of_day(output: str, run_date: date) -> list[storage.StoredObject]:
    """The committed parts of the runs planned on one UTC day."""
    return list_parquet(run_date_folder(output, run_date))


def open_manifest(output: str) -> ds.Dataset:
    """All rows of OUTPUT as a lazy Arrow dataset of MANIFEST_SCHEMA, also when there are no parts yet.

    Each part counts once, be it as itself or as its compacted copy. StorageError.
    """
    return open_parquet(output, _current_keys(output))


def open_parquet(output: str, keys: Sequence[str]) -> ds.Dataset:
    """The rows of Parquet objects below OUTPUT as a lazy dataset of MANIFEST_SCHEMA."""
    if not keys:
        return ds.dataset(MANIFEST_SCHEMA.empty_table())
    filesystem, root = storage.arrow_filesystem(output)
    return ds.dataset(
        list(keys),
        schema=MANIFEST_SCHEMA,
        format="parquet",
        filesystem=SubTreeFileSystem(root, filesystem),  # else a name=value folder above counts as well
        partitioning=ds.partitioning(pa.schema([RUN_DATE]), flavor="hive"),
    )


def scan_manifest(output: str, columns: Sequence[str], where: ds.Expression) -> Iterator[pa.RecordBatch]:
    """Some columns of the rows that pass a filter, in batches and bounded memory. StorageError."""
    for keys in _scanned_at_once(output):
        yield from (
            open_parquet(output, keys)
            .scanner(
                columns=list(columns),
                filter=where,
                batch_size=_BATCH_ROWS,
                batch_readahead=_READAHEAD,
                fragment_readahead=_READAHEAD,
            )
            .to_batches()
        )


def _scanned_at_once(output: str) -> Iterator[list[str]]:
    """What to scan, in groups: a scanner reads up to 1 GiB ahead of whoever takes its batches, and a dataset
    keeps the footer of each file that it has read."""
    view = compacted.current_view(output)
    yield from ([f"{compacted.FOLDER}/{copy.key}"] for copy in view.files)
    keys, size = list[str](), 0
    for part in view.parts:
        if keys and (len(keys) == _PARTS_AT_ONCE or size + part.size > _BYTES_AT_ONCE):
            yield keys
            keys, size = [], 0
        keys.append(f"manifests/{part.key}")
        size += part.size
    if keys:
        yield keys


def part_rows(key: str, content: bytes, root: str = "manifests") -> pa.Table:
    """The rows of a part (key below manifests/, its bytes) as MANIFEST_SCHEMA; columns it lacks are null.

    Raises StorageError, which names it below root, for a damaged part and a foreign file.
    """
    day = _RUN_DATE_FOLDER.match(key)
    with telling_damage(f"{root}/{key}"):
        _require_own(f"{root}/{key}", pq.read_schema(pa.BufferReader(content)))
        where = None if day is None else ds.field("run_date") == pa.scalar(date.fromisoformat(day[1]))
        return rows_in(content, MANIFEST_SCHEMA, _NEVER_NULL, where)


def _require_own(part: str, schema: pa.Schema) -> None:
    if set(_NEVER_NULL).isdisjoint(schema.names):
        raise StorageError(
            f"{part} is no part of a run (it has other columns): restore the part, or remove the file and "
            "label again"
        )


def _current_keys(output: str) -> list[str]:
    return [key for keys in _scanned_at_once(output) for key in keys]


def classes_of(output: str) -> tuple[str, ...]:
    """The classes of the newest part of OUTPUT, in the order of the masks' indices; none without a part."""
    parts = list_parts(output)
    return part_classes(parts[-1].uri) if parts else ()


def part_classes(uri: str) -> tuple[str, ...]:
    """The classes of one part, in the order of the masks' indices. StorageError, also for a damaged part."""
    content = storage.read_bytes(uri)
    with telling_damage(uri):
        schema = pq.read_schema(pa.BufferReader(content))
        _require_own(uri, schema)
        return classes_in(schema.metadata)


def read_manifest(
    output: str, columns: Sequence[str] | None = None, where: ds.Expression | None = None
) -> pa.Table:
    """The rows of OUTPUT, or some columns of those that pass a pyarrow filter, as an Arrow table."""
    return open_manifest(output).to_table(columns=None if columns is None else list(columns), filter=where)
