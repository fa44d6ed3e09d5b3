"""Which file of OUTPUT is damaged: engines that read thousands at once say that one is, and not which."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from segpipe import storage
from segpipe.concurrency import ordered_map
from segpipe.errors import StorageError
from segpipe.manifests import compacted
from segpipe.manifests.parts import manifests_root, telling_damage
from segpipe.manifests.store import open_parquet, part_rows
from segpipe.storage.retry import explained

_READERS = 16
_LAST_TIME = datetime(9999, 12, 31, tzinfo=UTC)  # that Python can tell
# What is wrong with the SQL, or with the memory, are other errors.
_OF_FILES = (
    *(pa.ArrowException, duckdb.InvalidInputException, duckdb.IOException, duckdb.InternalException),
    *(OSError, OverflowError, RuntimeError, ValueError),
)


@contextmanager
def naming_the_damaged(output: str) -> Iterator[None]:
    """An error that a damaged part or copy explains becomes a StorageError that names it; others stay."""
    try:
        yield
    except _OF_FILES as error:
        _require_whole(output)
        if isinstance(error, OSError):  # a part that vanished meanwhile, or a folder that may not be read
            with explained(manifests_root(output)):
                raise
        raise


def _require_whole(output: str) -> None:
    """Raise StorageError for the first file that cannot be read, of all that rows are read from."""
    view = compacted.current_view(output)
    for file in view.files:
        _require_whole_copy(output, f"{compacted.FOLDER}/{file.key}")

    def read(key: str) -> tuple[str, bytes]:
        return key, storage.read_bytes(storage.join(manifests_root(output), key))

    with ThreadPoolExecutor(_READERS) as pool:
        for key, content in ordered_map(pool, read, [part.key for part in view.parts], 2 * _READERS):
            rows = part_rows(key, content, manifests_root(output))
            _require_times_of_this_world(storage.join(manifests_root(output), key), rows)


def _require_times_of_this_world(part: str, rows: pa.Table) -> None:
    with telling_damage(part):
        latest = pc.max(rows["labeled_at"])
        if latest.is_valid and pc.greater(latest, pa.scalar(_LAST_TIME, latest.type)).as_py():
            raise ValueError("labeled_at")


def _require_whole_copy(output: str, key: str) -> None:
    try:
        for _ in open_parquet(output, [key]).to_batches():
            pass
    except (pa.ArrowException, OSError, ValueError) as error:
        uri, why = storage.join(output, key), type(error).__name__
        raise StorageError(f"{uri} is damaged ({why}): remove it, it holds copies only") from error
