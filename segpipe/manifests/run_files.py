"""What lies under OUTPUT/runs/<run_id>, for those who only read it: the frozen plan and run.json."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.manifests.parts import ERRORS_OF_CONTENT, is_of_system
from segpipe.redaction import redact
from segpipe.storage.retry import explained
from segpipe.validation import parse_json

logger = logging.getLogger(__name__)

PLAN_HEADER = b"segpipe.plan"
PLAN, RECORD = "plan.parquet", "run.json"
FURTHER = "further"
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class PlanFile:
    """A Parquet file of planned images, and how many it holds."""

    uri: str
    images: int


def plan_uri(output: str, run_id: str) -> str:
    """Where a run's frozen plan lies."""
    return storage.join(output, f"runs/{run_id}/{PLAN}")


def further_uri(output: str, run_id: str, name: str) -> str:
    """Where a further file of a plan lies, beside the first."""
    return storage.join(output, f"runs/{run_id}/{name}")


def record_uri(output: str, run_id: str) -> str:
    """Where a run's run.json lies."""
    return storage.join(output, f"runs/{run_id}/{RECORD}")


def plan_is_damaged(uri: str, error: Exception) -> RunError:
    """The one line about a plan that cannot be read."""
    return RunError(
        f"{redact(uri)} is damaged ({type(error).__name__}): restore it, or start a run with another id, "
        "which labels what is left; without its plan a run can neither be resumed nor reported"
    )


def require_whole_plan(output: str, run_id: str) -> None:
    """Read a plan from end to end, a piece at a time. Raises RunError for a damaged one, StorageError."""
    _, files = read_plan_header(output, run_id) or ({}, ())
    for file in files:
        for _ in plan_batches(file, _BATCH_ROWS):
            pass


def plan_batches(file: PlanFile, rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of one file of a plan, so many at a time. Raises RunError for a damaged one, StorageError."""
    n_rows = 0
    try:
        with _reading_plan(file.uri):
            filesystem, path = storage.arrow_filesystem(file.uri)
            with pq.ParquetFile(path, filesystem=filesystem) as opened:
                for batch in opened.iter_batches(rows):
                    n_rows += batch.num_rows
                    yield batch
            if n_rows != file.images:
                raise ValueError(f"{n_rows} rows")
    except NotFoundError as error:
        raise plan_is_damaged(file.uri, error) from error


def read_plan_header(output: str, run_id: str) -> tuple[dict[str, Any], tuple[PlanFile, ...]] | None:
    """What a plan says of its run, and its files, of which only the first one's footer is read.

    None where there is none. RunError for a damaged one, StorageError.
    """
    uri = plan_uri(output, run_id)
    try:
        with _reading_plan(uri):
            filesystem, path = storage.arrow_filesystem(uri)
            footer = pq.read_metadata(path, filesystem=filesystem)
            header = _json_object(footer.metadata[PLAN_HEADER])
            further = [
                PlanFile(further_uri(output, run_id, file["name"]), file["images"])
                for file in header.pop(FURTHER, [])
            ]
            return header, (PlanFile(uri, footer.num_rows), *further)
    except NotFoundError:
        return None


@contextmanager
def _reading_plan(uri: str) -> Iterator[None]:
    try:
        yield
    except ERRORS_OF_CONTENT as error:
        if is_of_system(error):
            with explained(uri):
                raise
        raise plan_is_damaged(uri, error) from error


def planned_header(output: str, run_id: str) -> dict[str, Any] | None:
    """What a plan says of its run; None where there is none. RunError for a damaged one, StorageError."""
    found = read_plan_header(output, run_id)
    return None if found is None else found[0]


def read_record(output: str, run_id: str) -> dict[str, Any] | None:
    """What run.json holds; None where there is none, and where it is damaged, which is said. StorageError."""
    uri = record_uri(output, run_id)
    try:
        return _json_object(storage.read_bytes(uri))
    except NotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        logger.warning(
            "%s is damaged (%s): restore it, or resume run %s, which writes it anew without the settings and "
            "versions that it held",
            redact(uri),
            type(error).__name__,
            run_id,
        )
        return None


def say_if_damaged(output: str, run_id: str) -> None:
    """Warn of a damaged run.json where nothing in it is needed. StorageError."""
    read_record(output, run_id)


def _json_object(text: bytes) -> dict[str, Any]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content
