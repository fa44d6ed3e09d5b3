"""Rows that no clock can have stamped: they stay the newest of their images, whatever is labelled later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache

import duckdb
import pyarrow.dataset as ds

from segpipe.manifests.schema import FARTHEST_AHEAD
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

_TOLD = f"""
    CREATE MACRO told_if_far_ahead(run_id, labeled_at) AS
    CASE WHEN labeled_at >= now() + INTERVAL {FARTHEST_AHEAD.days} DAYS
    THEN tell_far_ahead(run_id) ELSE true END"""


def say_if_far_ahead(rows: int, output: str) -> None:
    """Warn of so many rows under OUTPUT, if there are any."""
    if rows:
        logger.warning(
            "%d rows under %s are stamped more than a year from now, so they stay the newest of their images "
            "whatever is labelled: segpipe verify names them; remove their parts and label again "
            "(verify will go on naming the gaps)",
            rows,
            redact(output),
        )


_say_once = lru_cache(maxsize=64)(say_if_far_ahead)  # a report asks several times


@contextmanager
def saying_far_ahead(connection: duckdb.DuckDBPyConnection, rows: ds.Dataset, output: str) -> Iterator[None]:
    """The SQL function told_if_far_ahead, always true; in the end a warning of such rows if it met one."""
    # To look for them beforehand would read each part once more.
    told: list[str] = []

    def tell(run_id: str) -> bool:
        told.append(run_id)
        return True

    connection.create_function("tell_far_ahead", tell, ["VARCHAR"], "BOOLEAN", side_effects=True)
    connection.execute(_TOLD)
    yield
    if told:
        far_ahead = ds.field("labeled_at") >= datetime.now(UTC) + FARTHEST_AHEAD
        _say_once(rows.count_rows(filter=far_ahead), output)
