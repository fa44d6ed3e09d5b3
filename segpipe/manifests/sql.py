"""DuckDB as segpipe uses it: an engine over Arrow data, without a file of its own."""

from __future__ import annotations

import duckdb


def connect() -> duckdb.DuckDBPyConnection:
    """An empty in-memory database that sees no Python variables, speaks UTC and prints nothing."""
    connection = duckdb.connect(config={"python_enable_replacements": "false"})
    connection.execute("SET enable_progress_bar = false")  # it goes to stdout, into the middle of --json
    connection.execute("SET TimeZone = 'UTC'")
    return connection
