"""Nothing but results reaches stdout."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from segpipe.manifests.duckdb_engine import connect
print(connect().sql("SELECT current_setting('enable_progress_bar')").fetchall())
"""


def test_no_progress_bar_even_where_duckdb_thinks_a_person_watches() -> None:
    # DuckDB draws one on stdout in every Python without a script file, a pipe or not.
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert run.stdout == "[(False,)]\n"
