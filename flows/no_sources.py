"""What a run says of a sources file that names no source; a new one does not, so it is no failure."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from segpipe.redaction import redact
from segpipe.sources.sources_file import SourcesFile


def warn_of_none(url: str, file: SourcesFile) -> list[dict[str, Any]]:
    """A row for the run's table, and a warning in its log, if the file names no source; else no row."""
    if file.entries or file.problems:
        return []
    row = {"source": redact(url), "state": "names no source: write each below [[source]]"}
    get_run_logger().warning("%(source)s %(state)s", row)
    return [row]
