"""The images of a plan in Parquet files, written and read a piece at a time: a plan may exceed memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe.manifests.run_files import PlanFile, plan_batches

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("image_uri", pa.string()),
        ("image_etag", pa.string()),
        ("image_bytes", pa.int64()),
        ("mask_key", pa.string()),
    ]
)
BATCH_IMAGES = 65_536


class LocalFolder:
    """A folder on local disk (TMPDIR), removed once nobody holds it any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="segpipe-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class PlannedImages:
    """Images of a plan in the order of shards; held: the folder of their files, if that is a local one."""

    files: tuple[PlanFile, ...]
    held: LocalFolder | None = field(default=None, compare=False, repr=False)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(file.images for file in self.files)

    def tables(self) -> Iterator[pa.Table]:
        """All of them, as tables (PLAN_SCHEMA) of at most BATCH_IMAGES.

        RunError for a damaged file, StorageError.
        """
        for file in self.files:
            for batch in plan_batches(file, BATCH_IMAGES):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None).cast(PLAN_SCHEMA)


def keep_images(tables: Iterable[pa.Table]) -> PlannedImages:
    """Tables (PLAN_SCHEMA) kept in a local file."""
    folder = LocalFolder()
    path = folder.path / "images.parquet"
    return PlannedImages((PlanFile(str(path), write_tables(path, PLAN_SCHEMA, tables)),), folder)


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables as one Parquet file, one after another; how many rows there were."""
    n_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=BATCH_IMAGES)
            n_rows += table.num_rows
    return n_rows


def read_tables(path: Path) -> Iterator[pa.Table]:
    """The tables of a file that `write_tables` has written."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_IMAGES):
            yield pa.Table.from_batches([batch])
