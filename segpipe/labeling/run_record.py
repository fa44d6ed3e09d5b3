"""What OUTPUT/runs/<run_id> holds: the frozen plan, and run.json for people."""

from __future__ import annotations

import io
import json
import logging
import platform
from dataclasses import asdict, fields
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from segpipe import storage
from segpipe.errors import AlreadyExistsError, NotFoundError, RunError
from segpipe.image_range import checked_range
from segpipe.labeling.plan import PLAN_SCHEMA, RunPlan, check_run_id
from segpipe.manifests.chain import Tip
from segpipe.manifests.parts import ERRORS_OF_CONTENT, is_of_system
from segpipe.manifests.run_files import PLAN, PLAN_HEADER, plan_is_damaged, plan_uri, record_uri
from segpipe.manifests.store import table_bytes
from segpipe.redaction import redact
from segpipe.storage.retry import explained
from segpipe.tiles import Tiling
from segpipe.validation import parse_json

if TYPE_CHECKING:
    from segpipe.config import LabelSettings

logger = logging.getLogger(__name__)

_TIMES = ("created_at", "newer_from")
_REPORTED_PACKAGES = ("segpipe", "torch", "numpy", "numba", "pillow", "pyarrow", "fsspec", "s3fs", "ray")


def freeze_plan(plan: RunPlan, settings: LabelSettings) -> None:
    """Write the plan, once, and then run.json, under the run's id.

    Raises RunError when the id is in use, StorageError when OUTPUT cannot be written.
    """
    table = plan.table.replace_schema_metadata({PLAN_HEADER: json.dumps(_header(plan))})
    try:
        storage.create(plan_uri(plan.output, plan.run_id), table_bytes(table))
    except AlreadyExistsError as error:
        raise RunError(f"run id {plan.run_id} is in use: resume that run, or choose another id") from error
    _write_record(plan, _first_record(plan, settings))


def load_plan(output: str, run_id: str) -> RunPlan | None:
    """The plan frozen under this id, None when there is none.

    Raises RunError when the run id is unfit or the plan is damaged.
    """
    output = storage.normalise(output)
    uri = plan_uri(output, check_run_id(run_id))
    try:
        return _parse_plan(output, storage.read_bytes(uri))
    except NotFoundError:
        return None
    except ERRORS_OF_CONTENT as error:
        raise plan_is_damaged(uri, error) from error


def list_runs(output: str) -> list[str]:
    """The ids of all runs with a frozen plan, sorted. StorageError."""
    try:
        keys = [found.key for found in storage.list_objects(storage.join(output, "runs"))]
    except NotFoundError:
        return []
    return sorted(key.removesuffix(f"/{PLAN}") for key in keys if key.endswith(f"/{PLAN}"))


def load_header(output: str, run_id: str) -> RunPlan | None:
    """The plan with an empty table: of a plan of millions of images only the footer is read.

    None when there is no such plan; raises RunError when the run id is unfit or the plan is damaged.
    """
    uri = plan_uri(output, check_run_id(run_id))
    filesystem, path = storage.arrow_filesystem(uri)
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem).metadata
        return _plan_of(output, PLAN_SCHEMA.empty_table(), metadata)
    except (FileNotFoundError, NotFoundError):
        return None
    except ERRORS_OF_CONTENT as error:
        if is_of_system(error):
            with explained(uri):
                raise
        raise plan_is_damaged(uri, error) from error


def delete_run(output: str, run_id: str) -> None:
    """Remove a run's plan and then its run.json: without a plan the run cannot be taken up. StorageError."""
    storage.delete(plan_uri(output, run_id))
    storage.delete(record_uri(output, run_id))


def record_totals(plan: RunPlan, totals: dict[str, Any], tip: Tip | None) -> None:
    """Add a run's totals to its run.json, and where the chain of its parts ends."""
    chain = {} if tip is None else {"chain": asdict(tip)}
    _write_record(plan, _read_record(plan) | {"totals": totals} | chain)


def _parse_plan(output: str, data: bytes) -> RunPlan:
    table = pq.read_table(io.BytesIO(data))
    return _plan_of(output, table.replace_schema_metadata(None).cast(PLAN_SCHEMA), table.schema.metadata)


def _plan_of(output: str, table: pa.Table, metadata: dict[bytes, bytes] | None) -> RunPlan:
    header = json.loads((metadata or {})[PLAN_HEADER])
    times = {name: datetime.fromisoformat(header[name]) for name in _TIMES if header.get(name)}
    header |= times | {"retry": tuple(header.get("retry", ()))}
    if header.get("image_range") is not None:
        header["image_range"] = checked_range(header["image_range"])
    if header.get("tiling") is not None:
        header["tiling"] = TypeAdapter(Tiling).validate_python(header["tiling"])
    return RunPlan(**header, output=output, table=table)


def _header(plan: RunPlan) -> dict[str, Any]:
    """The plan in JSON's types, without its table and the place where it lies."""
    names = [field.name for field in fields(plan) if field.name not in ("output", "table")]
    header = {name: getattr(plan, name) for name in names}
    if plan.tiling is not None:
        header["tiling"] = asdict(plan.tiling)
    return header | {name: header[name].isoformat() for name in _TIMES if header[name]}


def _first_record(plan: RunPlan, settings: LabelSettings) -> dict[str, Any]:
    return _header(plan) | {
        "output": plan.output,
        "planned": plan.table.num_rows,
        "settings": settings.model_dump(mode="json"),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _read_record(plan: RunPlan) -> dict[str, Any]:
    """run.json; only the plan's own facts where a kill came before run.json, or it is damaged."""
    plans_own = _header(plan) | {"output": plan.output, "planned": plan.table.num_rows}
    try:
        return plans_own | parse_json(storage.read_bytes(_record_uri(plan)))
    except NotFoundError:
        return plans_own
    except (TypeError, ValueError, RecursionError) as error:
        logger.warning(
            "%s is damaged (%s): written anew, without the settings and versions that it held",
            redact(_record_uri(plan)),
            type(error).__name__,
        )
        return plans_own


def _write_record(plan: RunPlan, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False)
    storage.put(_record_uri(plan), redact(text).encode())


def _record_uri(plan: RunPlan) -> str:
    return record_uri(plan.output, plan.run_id)
