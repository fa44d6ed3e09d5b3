"""What lies under OUTPUT/runs/<run_id>, for those who only read it: the frozen plan and run.json."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.manifests.parts import ERRORS_OF_CONTENT
from segpipe.redaction import redact
from segpipe.validation import parse_json

logger = logging.getLogger(__name__)

PLAN_HEADER = b"segpipe.plan"
PLAN, RECORD = "plan.parquet", "run.json"


def plan_uri(output: str, run_id: str) -> str:
    """Where a run's frozen plan lies."""
    return storage.join(output, f"runs/{run_id}/{PLAN}")


def record_uri(output: str, run_id: str) -> str:
    """Where a run's run.json lies."""
    return storage.join(output, f"runs/{run_id}/{RECORD}")


def plan_is_damaged(uri: str, error: Exception) -> RunError:
    """The one line about a plan that cannot be read."""
    return RunError(
        f"{redact(uri)} is damaged ({type(error).__name__}): restore it, or start a run with another id, "
        "which labels what is left; without its plan a run can neither be resumed nor reported"
    )


def require_whole_plan(uri: str) -> None:
    """Read a plan from end to end. Raises RunError for a damaged one, StorageError."""
    content = storage.read_bytes(uri)
    try:
        plan = pq.ParquetFile(pa.BufferReader(content))
        _json_object(plan.metadata.metadata[PLAN_HEADER])
        for _ in plan.iter_batches():
            pass
    except ERRORS_OF_CONTENT as error:
        raise plan_is_damaged(uri, error) from error


def planned_header(output: str, run_id: str) -> dict[str, Any] | None:
    """What a plan says of its run; None where there is none. RunError for a damaged one, StorageError."""
    uri = plan_uri(output, run_id)
    try:
        metadata = pq.read_metadata(pa.BufferReader(storage.read_bytes(uri))).metadata
        return _json_object(metadata[PLAN_HEADER])
    except NotFoundError:
        return None
    except ERRORS_OF_CONTENT as error:
        raise plan_is_damaged(uri, error) from error


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
