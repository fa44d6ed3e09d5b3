"""Nothing but results reaches stdout, however long a query takes."""

from __future__ import annotations

import subprocess
import sys

SLOW = "SELECT count(*) FROM range(20000000) t(i) WHERE i % 7 = 3"
CODE = f"""
from segpipe.manifests.sql import connect
connection = connect()
connection.execute("SET progress_bar_time = 1")
connection.sql("{SLOW}").to_arrow_table()
"""


def test_a_slow_query_prints_no_progress_bar() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")
