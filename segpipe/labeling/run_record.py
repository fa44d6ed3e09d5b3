"""What OUTPUT/runs/<run_id> holds: the frozen plan, and run.json for people."""

from __future__ import annotations

import json
import logging
import platform
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import TypeAdapter

from segpipe import storage
from segpipe.errors import AlreadyExistsError, NotFoundError, RunError
from segpipe.image_range import checked_range
from segpipe.labeling.plan import RunPlan, check_run_id
from segpipe.labeling.plan_files import PLAN_SCHEMA, PlannedImages
from segpipe.manifests.batches import large_batches
from segpipe.manifests.chain import Tip
from segpipe.manifests.parts import ERRORS_OF_CONTENT, RUN_ID
from segpipe.manifests.run_files import (
    FURTHER,
    PLAN,
    PLAN_HEADER,
    PlanFile,
    further_uri,
    plan_is_damaged,
    plan_uri,
    read_plan_header,
    record_uri,
    require_whole_plan,
)
from segpipe.manifests.store import table_bytes
from segpipe.redaction import redact
from segpipe.tiles import Tiling
from segpipe.validation import parse_json

if TYPE_CHECKING:
    from segpipe.config import LabelSettings

logger = logging.getLogger(__name__)

# A file is written in one piece: some 30 MB, and some 250 MB in memory.
FILE_IMAGES = 1_000_000
FURTHER_NAME = re.compile(r"plan-[0-9a-f]{8}-\d{5,}\.parquet")
_TIMES = ("created_at", "newer_from")
_REPORTED_PACKAGES = ("segpipe", "torch", "numpy", "numba", "pillow", "pyarrow", "fsspec", "s3fs", "ray")


def freeze_plan(
    plan: RunPlan, settings: LabelSettings, require_claim: Callable[[], None] = lambda: None
) -> RunPlan:
    """Write the plan, once, and then run.json, under the run's id; the plan as it lies there.

    A plan of more than some FILE_IMAGES has further files, which are written first: it is there once
    plan.parquet is. require_claim is asked before that, as a clean-up takes away the files of a planner that
    has lost its claim. Raises what it raises, RunError when the id is in use, StorageError when OUTPUT cannot
    be written.
    """
    token = secrets.token_hex(4)
    tables = _files_of(plan.images)
    first, further = next(tables), list[PlanFile]()
    for number, table in enumerate(tables, start=1):
        uri = further_uri(plan.output, plan.run_id, f"plan-{token}-{number:05d}.parquet")
        storage.create(uri, table_bytes(table))
        further.append(PlanFile(uri, table.num_rows))
    uri = plan_uri(plan.output, plan.run_id)
    require_claim()
    try:
        storage.create(uri, table_bytes(first.replace_schema_metadata({PLAN_HEADER: _told(plan, further)})))
    except AlreadyExistsError as error:
        for file in further:
            storage.delete(file.uri)
        raise RunError(f"run id {plan.run_id} is in use: resume that run, or choose another id") from error
    _write_record(plan, _first_record(plan, settings))
    return replace(plan, images=PlannedImages((PlanFile(uri, first.num_rows), *further)))


def _files_of(images: PlannedImages) -> Iterator[pa.Table]:
    """One table per file of the frozen plan, at least one."""
    batches = (batch for table in images.tables() for batch in table.to_batches())
    tables = large_batches(batches, FILE_IMAGES)
    yield next(tables, PLAN_SCHEMA.empty_table())
    yield from tables


def _told(plan: RunPlan, further: list[PlanFile]) -> str:
    """The header of the plan's first file; it names further ones only where there are some, as versions
    before them read no others."""
    files = [{"name": file.uri.rpartition("/")[2], "images": file.images} for file in further]
    return json.dumps(_header(plan) | ({FURTHER: files} if files else {}))


def load_plan(output: str, run_id: str) -> RunPlan | None:
    """The plan frozen under this id, None when there is none; read once, so that it is known to be whole.

    Raises RunError when the run id is unfit or the plan is damaged.
    """
    plan = load_header(output, run_id)
    if plan is not None:
        require_whole_plan(plan.output, run_id)
    return plan


def load_header(output: str, run_id: str) -> RunPlan | None:
    """The plan, of which only the first file's footer is read; None when there is none.

    Raises RunError when the run id is unfit or the plan is damaged.
    """
    output = storage.normalise(output)
    if (found := read_plan_header(output, check_run_id(run_id))) is None:
        return None
    try:
        return _plan_of(output, *found)
    except ERRORS_OF_CONTENT as error:
        raise plan_is_damaged(plan_uri(output, run_id), error) from error


def list_runs(output: str) -> list[str]:
    """The ids of all runs with a frozen plan, sorted. StorageError."""
    try:
        keys = [found.key for found in storage.list_objects(storage.join(output, "runs"))]
    except NotFoundError:
        return []
    return sorted(key.removesuffix(f"/{PLAN}") for key in keys if key.endswith(f"/{PLAN}"))


def find_orphans(output: str) -> list[str]:
    """The further files that no plan names (their URIs): a planner writes them, or was killed meanwhile.

    The files beside a damaged plan are left out. StorageError.
    """
    try:
        found = [file for file in storage.list_objects(storage.join(output, "runs")) if _is_further(file.key)]
    except NotFoundError:
        return []
    by_run = groupby(found, key=lambda file: file.key.rpartition("/")[0])
    return [uri for run_id, files in by_run for uri in _unnamed(output, run_id, [file.uri for file in files])]


def _is_further(key: str) -> bool:
    run_id, _, name = key.rpartition("/")
    return RUN_ID.fullmatch(run_id) is not None and FURTHER_NAME.fullmatch(name) is not None


def _unnamed(output: str, run_id: str, uris: list[str]) -> list[str]:
    try:
        plan = load_header(output, run_id)
    except RunError:
        return []
    named = set() if plan is None else {file.uri for file in plan.images.files}
    return [uri for uri in uris if uri not in named]


def delete_run(plan: RunPlan) -> None:
    """Remove a run's run.json, its plan, and the further files that this names. StorageError.

    Once the plan is gone another run may take the id, so that nothing but its own files may go after it.
    """
    storage.delete(_record_uri(plan))
    first, *further = plan.images.files
    storage.delete(first.uri)
    for name in (file.uri.rpartition("/")[2] for file in further):
        if FURTHER_NAME.fullmatch(name):
            storage.delete(further_uri(plan.output, plan.run_id, name))


def record_totals(plan: RunPlan, totals: dict[str, Any], tip: Tip | None) -> None:
    """Add a run's totals to its run.json, and where the chain of its parts ends."""
    chain = {} if tip is None else {"chain": asdict(tip)}
    _write_record(plan, _read_record(plan) | {"totals": totals} | chain)


def _plan_of(output: str, header: dict[str, Any], files: tuple[PlanFile, ...]) -> RunPlan:
    times = {name: datetime.fromisoformat(header[name]) for name in _TIMES if header.get(name)}
    header |= times | {"retry": tuple(header.get("retry", ()))}
    if header.get("image_range") is not None:
        header["image_range"] = checked_range(header["image_range"])
    if header.get("tiling") is not None:
        header["tiling"] = TypeAdapter(Tiling).validate_python(header["tiling"])
    return RunPlan(**header, output=output, images=PlannedImages(files))


def _header(plan: RunPlan) -> dict[str, Any]:
    """The plan in JSON's types, without its images and the place where it lies."""
    names = [field.name for field in fields(plan) if field.name not in ("output", "images")]
    header = {name: getattr(plan, name) for name in names}
    if plan.tiling is not None:
        header["tiling"] = asdict(plan.tiling)
    return header | {name: header[name].isoformat() for name in _TIMES if header[name]}


def _first_record(plan: RunPlan, settings: LabelSettings) -> dict[str, Any]:
    return _header(plan) | {
        "output": plan.output,
        "planned": plan.images.count,
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
    plans_own = _header(plan) | {"output": plan.output, "planned": plan.images.count}
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
