"""DuckDB as segpipe uses it: an engine over Arrow data, without a file of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

# A quarter of the 2 GiB that planning may take: Arrow, Python and torch need theirs beside it.
SCRATCH_MEMORY = "512MiB"


def connect() -> duckdb.DuckDBPyConnection:
    """An empty in-memory database that sees no Python variables, speaks UTC and prints nothing."""
    connection = duckdb.connect(config={"python_enable_replacements": "false"})
    connection.execute("SET enable_progress_bar = false")  # it goes to stdout, into the middle of --json
    connection.execute("SET TimeZone = 'UTC'")
    return connection


@contextmanager
def scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database whose tables go to local disk (TMPDIR) when they are too large for memory."""
    with tempfile.TemporaryDirectory(prefix="segpipe-") as folder, connect() as connection:
        connection.execute("SET temp_directory = $folder", {"folder": folder})
        connection.execute("SET memory_limit = $memory", {"memory": SCRATCH_MEMORY})
        connection.execute("SET preserve_insertion_order = false")  # keeping it costs memory
        # Streams have no known size: as written, the table on the right is the one held.
        connection.execute("SET disabled_optimizers = 'build_side_probe_side,join_order'")
        yield connection
