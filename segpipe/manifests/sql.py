"""DuckDB as segpipe uses it: an engine over Arrow data, without a file of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

# Far below the 2 GiB that planning 10 million objects may take: Arrow and Python need theirs beside it.
SCRATCH_MEMORY = "768MiB"


def connect() -> duckdb.DuckDBPyConnection:
    """An empty in-memory database that sees no Python variables, speaks UTC and prints nothing."""
    connection = duckdb.connect(config={"python_enable_replacements": "false"})
    connection.execute("SET enable_progress_bar = false")  # it goes to stdout, into the middle of --json
    connection.execute("SET TimeZone = 'UTC'")
    return connection


@contextmanager
def scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database for tables larger than memory, on local disk (TMPDIR), that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="segpipe-") as folder, connect() as connection:
        path = folder.replace("'", "''")
        connection.execute(f"ATTACH '{path}/scratch.duckdb' AS scratch; USE scratch")
        connection.execute(f"SET memory_limit = '{SCRATCH_MEMORY}'")
        connection.execute("SET preserve_insertion_order = false")  # keeping it costs memory
        connection.execute(f"SET temp_directory = '{path}'")
        yield connection
