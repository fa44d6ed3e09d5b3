"""How long planning takes, and in how much memory, when nearly everything is labelled already, or nothing.

    python benchmarks/planning.py --work FOLDER [--millions 1,3,10] [--part-rows 256]
    python benchmarks/planning.py --work FOLDER --first-run --millions 30

Per size: an inventory list (Parquet) of that many objects against a manifest of that many rows, of which
0.05% of the objects are new and 0.05% changed; each step in a process of its own. With parts as labelling
leaves them (256 rows) it plans, compacts, plans again; with --part-rows 1000000, as compaction leaves,
it plans once.

With --first-run nothing is labelled: it plans and freezes the plan, takes it up and goes through all that is
pending, does so again once half of the shards have their parts, and reads the plan as verify does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from machine import peak_bytes, write_results

from segpipe.config import CompactSettings, LabelSettings
from segpipe.manifests.batches import large_batches
from segpipe.manifests.duckdb_engine import connect
from segpipe.manifests.schema import ROW_SCHEMA

MODEL_ID = "0123456789ab"
LIMIT_SECONDS, LIMIT_BYTES = 120, 2 * 2**30
SMALL_PART_ROWS = 10_000
RUN, SHARD_IMAGES = "benchmark", 100_000
NEW_PER_MILLION = CHANGED_PER_MILLION = 500

_KEYS = "printf('camera-%02d/%04d/frame-%09d.jpg', i % 40, i // 4096, i)"
_INVENTORY = f"""
    SELECT {_KEYS} AS key, 90000 + i % 20000 AS size,
           md5(if(i % 1000000 < {CHANGED_PER_MILLION}, 'changed', 'object') || i) AS etag
    FROM range($n::BIGINT + $n::BIGINT * {NEW_PER_MILLION} // 1000000) AS _(i)"""
_PLANNED_ROWS = f"""
    SELECT image_uri, image_etag, image_bytes, $masks || mask_key AS mask_uri,
           sha256(mask_key) AS mask_sha256, 'accepted' AS decision, 'confident' AS reason,
           '{MODEL_ID}' AS model_id, '{RUN}' AS run_id, shard, now() AS labeled_at
    FROM read_parquet($files) WHERE shard = $shard"""
_ROWS = f"""
    SELECT $source || '/' || {_KEYS} AS image_uri, md5('object' || i) AS image_etag, 90000 + i % 20000 AS image_bytes,
           480 AS image_width, 360 AS image_height,
           $output || '/masks/{MODEL_ID}/' || {_KEYS} || '.png' AS mask_uri, sha256('mask' || i) AS mask_sha256,
           if(i % 10 = 0, 'review', 'accepted') AS decision,
           if(i % 10 = 0, 'low_confidence', 'confident') AS reason,
           (hash(i) % 1000000) / 1e6 AS confidence, (hash(i) % 999983) / 1e6 AS discriminator_score,
           [0.25, 0.25, 0.5]::FLOAT[] AS class_fractions, [0.5, 0.75, 0.875]::FLOAT[] AS class_confidences,
           false AS audit, 0.02 AS inclusion_probability, '{MODEL_ID}' AS model_id, 'policy' AS policy_id,
           'run' AS run_id, 0 AS shard, TIMESTAMPTZ '2026-01-01' AS labeled_at, NULL AS error,
           NULL AS confidence_map_uri
    FROM range($n::BIGINT) AS _(i)"""  # noqa: E501


@dataclass(frozen=True)
class Measured:
    """One step in a process of its own; CPU seconds tell a slow step from a busy machine."""

    step: str
    objects: int
    parts_read: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    images: int
    seconds_of_limit: float
    memory_of_limit: float


def main() -> None:
    arguments = _arguments()
    if arguments.step:
        print(json.dumps(asdict(_measure(arguments.step, arguments.work))))
        return
    measure = _measure_first_run if arguments.first_run else _measure_size
    measured = [result for millions in arguments.millions for result in measure(millions, arguments)]
    figures = {
        "limits": {"seconds": LIMIT_SECONDS, "peak_bytes": LIMIT_BYTES},
        "measured": [asdict(result) for result in measured],
    }
    write_results(
        "planning-first-run" if arguments.first_run else f"planning-{arguments.part_rows}-rows", figures
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the synthetic data, 4 GB at 10")
    parser.add_argument(
        "--millions", type=lambda text: [float(part) for part in text.split(",")], default=[1, 3, 10]
    )
    parser.add_argument("--part-rows", type=int, default=256)
    parser.add_argument("--first-run", action="store_true", help="nothing is labelled yet")
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure_size(millions: float, arguments: argparse.Namespace) -> list[Measured]:
    folder = arguments.work / f"{millions:g}"
    shutil.rmtree(folder, ignore_errors=True)
    _write_data(folder, round(millions * 1_000_000), arguments.part_rows)
    steps = ("plan", "compact", "plan") if arguments.part_rows < SMALL_PART_ROWS else ("plan",)
    results = [_in_own_process(step, folder) for step in steps]
    shutil.rmtree(folder)
    return results


def _measure_first_run(millions: float, arguments: argparse.Namespace) -> list[Measured]:
    folder = arguments.work / f"first-{millions:g}"
    shutil.rmtree(folder, ignore_errors=True)
    _write_inventory(folder, round(millions * 1_000_000))
    results = [_in_own_process(step, folder) for step in ("freeze", "resume")]
    _write_half_of_the_parts(folder)
    results += [_in_own_process(step, folder) for step in ("resume", "check")]
    shutil.rmtree(folder)
    return results


def _in_own_process(step: str, folder: Path) -> Measured:
    command = [sys.executable, __file__, "--work", str(folder), "--step", step]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = Measured(**json.loads(answer))
    print(
        f"{result.step:7} {result.objects / 1e6:4.1f} million objects, {result.parts_read:6} files: "
        f"{result.seconds:6.1f} s ({result.seconds_of_limit:.2f} of the limit), "
        f"{result.cpu_seconds:6.1f} CPU s, "
        f"{result.peak_bytes / 2**20:5.0f} MiB ({result.memory_of_limit:.2f}), {result.images} images",
        flush=True,
    )
    return result


def _write_data(folder: Path, n_objects: int, part_rows: int) -> None:
    places = {"source": str(folder / "source"), "output": str(folder / "output")}
    _write_inventory(folder, n_objects)
    parts = folder / "output" / "manifests" / f"run_date={date(2026, 1, 1)}"
    parts.mkdir(parents=True)
    with connect() as connection:
        rows = connection.sql(_ROWS, params={"n": n_objects, **places})
        for shard, part in enumerate(_parts(rows.to_arrow_reader(max(part_rows, 65_536)), part_rows)):
            pq.write_table(
                part, parts / f"run-{shard:05d}.parquet", compression="zstd", row_group_size=65_536
            )


def _write_inventory(folder: Path, n_objects: int) -> None:
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "present.jpg").write_bytes(b"an object")
    with connect() as connection:
        inventory = connection.sql(_INVENTORY, params={"n": n_objects}).to_arrow_reader(100_000)
        with pq.ParquetWriter(folder / "inventory.parquet", inventory.schema, compression="zstd") as writer:
            for batch in inventory:
                writer.write_batch(batch)


def _write_half_of_the_parts(folder: Path) -> None:
    """The rows of the first half of the frozen plan, a part for each of its shards."""
    from segpipe.labeling.run_record import load_header
    from segpipe.manifests.store import run_date_folder

    plan = load_header(str(folder / "output"), RUN)
    assert plan is not None
    parts = Path(run_date_folder(plan.output, plan.run_date))
    parts.mkdir(parents=True)
    with connect() as connection:
        for shard in range(plan.images.count // SHARD_IMAGES // 2):
            rows = connection.sql(
                _PLANNED_ROWS,
                params={
                    "files": [file.uri for file in plan.images.files],
                    "shard": shard,
                    "masks": f"{plan.masks_root}/",
                },
            ).to_arrow_table()
            path = parts / f"{RUN}-{shard:05d}.parquet"
            pq.write_table(_typed(rows), path, compression="zstd", row_group_size=65_536)


def _typed(rows: pa.Table) -> pa.Table:
    """With the columns of today that a benchmark's SQL does not name, null."""
    columns = {
        field.name: rows[field.name] if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
        for field in ROW_SCHEMA
    }
    return pa.table(columns).cast(ROW_SCHEMA)


def _parts(rows: pa.RecordBatchReader, part_rows: int) -> Iterator[pa.Table]:
    for table in large_batches(rows, max(part_rows, 65_536)):
        typed = _typed(table)
        for start in range(0, typed.num_rows, part_rows):
            yield typed.slice(start, part_rows)


def _measure(step: str, folder: Path) -> Measured:
    n_objects = pq.read_metadata(folder / "inventory.parquet").num_rows
    started, cpu = time.perf_counter(), time.process_time()
    images, files = STEPS[step](folder)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = peak_bytes(os.getpid())
    ratios = (seconds / LIMIT_SECONDS, peak / LIMIT_BYTES)
    return Measured(step, n_objects, files, seconds, cpu, peak, images, *ratios)


def _plan(folder: Path) -> tuple[int, int]:
    from segpipe.labeling.plan import make_plan
    from segpipe.manifests.compacted import current_view

    view = current_view(str(folder / "output"))
    plan = make_plan(
        str(folder / "source"),
        str(folder / "output"),
        MODEL_ID,
        None,
        LabelSettings(inventory=str(folder / "inventory.parquet")),
        "benchmark",
        datetime.now(UTC),
    )
    return plan.images.count, len(view.files) + len(view.parts)


def _compact(folder: Path) -> tuple[int, int]:
    from segpipe.manifests.compaction import compact

    summary = compact(str(folder / "output"), CompactSettings())
    return summary.rows, summary.parts


def _freeze(folder: Path) -> tuple[int, int]:
    from segpipe.labeling.plan import make_plan
    from segpipe.labeling.run_record import freeze_plan

    settings = LabelSettings(inventory=str(folder / "inventory.parquet"), shard_images=SHARD_IMAGES)
    places = str(folder / "source"), str(folder / "output")
    plan = make_plan(*places, MODEL_ID, None, settings, RUN, datetime.now(UTC))
    return freeze_plan(plan, settings).images.count, 0


def _resume(folder: Path) -> tuple[int, int]:
    from segpipe.labeling.plan import finished_parts, pending_images
    from segpipe.labeling.run import _planned
    from segpipe.labeling.run_record import load_plan

    plan = load_plan(str(folder / "output"), RUN)
    assert plan is not None
    return sum(1 for _ in _planned(pending_images(plan))), len(finished_parts(plan))


def _check(folder: Path) -> tuple[int, int]:
    from segpipe.labeling.run_record import load_header
    from segpipe.manifests.run_files import require_whole_plan

    require_whole_plan(str(folder / "output"), RUN)
    plan = load_header(str(folder / "output"), RUN)
    assert plan is not None
    return plan.images.count, len(plan.images.files)


STEPS = {"plan": _plan, "compact": _compact, "freeze": _freeze, "resume": _resume, "check": _check}


if __name__ == "__main__":
    main()
