"""What a run will label: the inventory without what this model has labelled, cut into shards.

When there are several shards the first is a random sample of the planned images, so that what its scores say
about drift holds for the run; the others follow in the order of the images' keys.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segpipe import storage
from segpipe.errors import RunError
from segpipe.image_range import ImageRange
from segpipe.labeling.backlog import find_backlog, load_rows
from segpipe.labeling.inventory import take_inventory
from segpipe.labeling.mask_keys import choose_mask_keys, natural_keys, with_chosen
from segpipe.labeling.plan_files import (
    BATCH_IMAGES,
    PLAN_SCHEMA,
    LocalFolder,
    PlannedImages,
    keep_images,
    read_tables,
    write_tables,
)
from segpipe.labeling.stamps import first_stamp, rows_ahead
from segpipe.manifests import store
from segpipe.manifests.duckdb_engine import scratch
from segpipe.manifests.parts import RUN_ID
from segpipe.manifests.schema import FARTHEST_AHEAD
from segpipe.tiles import Tiling

if TYPE_CHECKING:
    from segpipe.config import LabelSettings

_WANTED_SCHEMA = pa.schema([*PLAN_SCHEMA, ("image_key", pa.string())])
_TO_LABEL = """
    SELECT image_uri, coalesce(image_etag, '') AS image_etag, image_bytes, image_key FROM backlog
    ORDER BY image_key LIMIT $limit"""
_IMAGES = """
    CREATE OR REPLACE VIEW images AS
    SELECT file_row_number AS row, image_uri, image_etag, mask_key, {stem} AS stem
    FROM read_parquet('{path}', file_row_number = true)"""
_RETRIED = "SELECT count(*) FROM images SEMI JOIN failed USING (image_uri, image_etag)"
# An image that another run labelled after this plan was made waits for the next plan even if its ETag
# differs: this plan chose its mask key before that mask was there.
_LABELLED_MEANWHILE = """
    CREATE TABLE labelled_meanwhile AS
    SELECT row FROM images SEMI JOIN done ON done.image_uri = images.image_uri
        AND (done.image_etag = images.image_etag
             OR (done.labeled_at >= $newer_from AND done.labeled_at < $newer_until))
    ORDER BY row"""
_MEANWHILE = "SELECT row FROM labelled_meanwhile WHERE row >= $first AND row < $end"


@dataclass(frozen=True)
class RunPlan:
    """A run's plan: `images` names each image, in the order of shards, and where its mask goes.

    already_done counts the images left out because this model has labelled them, retried those planned again
    after a failure, skipped the objects left aside per reason. model_digest is the full digest that model_id
    begins, None in a plan of a version that did not keep it. retry are the reasons for which the user wants
    failed images planned again. image_range and tiling are the model's, None in a plan of an earlier version
    too. Rows stamped from newer_from on were written after the plan was made; None, in a plan of an earlier
    version: from created_at on.
    """

    run_id: str
    created_at: datetime
    source: str
    output: str
    model_id: str
    policy_id: str | None
    already_done: int
    retried: int
    skipped: dict[str, int]
    images: PlannedImages
    model_digest: str | None = None
    retry: tuple[str, ...] = ()
    newer_from: datetime | None = None
    image_range: ImageRange | None = None
    tiling: Tiling | None = None

    @property
    def run_date(self) -> date:
        """The UTC day the plan was made, under which all parts of the run lie."""
        return self.created_at.astimezone(UTC).date()

    @property
    def masks_root(self) -> str:
        """The folder of this model's masks."""
        return storage.join(self.output, f"masks/{self.model_id}")

    @property
    def confidence_maps_root(self) -> str:
        """The folder of this model's confidence maps; each has the key of its mask."""
        return storage.join(self.output, f"confidence_maps/{self.model_id}")


@dataclass(frozen=True)
class PlanSummary:
    """What a run would do, and under which policy; `bytes` is the size of the images to read."""

    source: str
    output: str
    model_id: str
    images: int
    bytes: int
    shards: int
    already_done: int
    retried: int
    skipped: dict[str, int]
    policy_id: str | None


def new_run_id(now: datetime) -> str:
    """A run id that sorts by time and differs between runs of one second."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def check_run_id(run_id: str) -> str:
    """The run id, if it can be part of an object's name; raises RunError."""
    if not RUN_ID.fullmatch(run_id):
        raise RunError(f"run id {run_id!r} is unfit: use 1 to 64 letters, digits, dots, dashes, underscores")
    return run_id


def make_plan(
    source: str,
    output: str,
    model_id: str,
    policy_id: str | None,
    settings: LabelSettings,
    run_id: str,
    now: datetime,
    limit: int | None = None,
    *,
    model_digest: str | None = None,
) -> RunPlan:
    """Plan the images of SOURCE that this model has not labelled yet, at most `limit`; writes nothing.

    Raises NotFoundError when SOURCE does not exist, RunError when it holds no images or the run id is unfit.
    """
    check_run_id(run_id)
    source, output = storage.normalise(source), storage.normalise(output)
    inventory = take_inventory(source, output, settings.inventory)
    folder = LocalFolder()
    wanted = folder.path / "wanted.parquet"
    with scratch() as connection:
        already_done = find_backlog(connection, inventory, output, model_id, settings.retry)
        n_images = write_tables(wanted, _WANTED_SCHEMA, _wanted(connection, limit))
        connection.execute("DROP TABLE backlog CASCADE")
        _define_images(connection, wanted, "image_key")
        choose_mask_keys(connection)
        ((retried,),) = connection.execute(_RETRIED).fetchall()
        sampled = _sample(n_images, settings.shard_images, run_id)
        images = keep_images(
            _cut_into_shards(partial(_chosen, connection, wanted), sampled, settings.shard_images)
        )
    return RunPlan(
        run_id=run_id,
        created_at=now.astimezone(UTC),
        source=source,
        output=output,
        model_id=model_id,
        policy_id=policy_id,
        already_done=already_done,
        retried=retried,
        skipped={name: count for name, count in sorted(inventory.skipped.items()) if count},
        images=images,
        model_digest=model_digest,
        retry=settings.retry,
        newer_from=first_stamp(rows_ahead(output, now), now.astimezone(UTC)),
    )


def summarise_plan(plan: RunPlan) -> PlanSummary:
    """The plan in numbers."""
    sizes, last_shards = [], []
    for table in plan.images.tables():
        sizes.append(pc.sum(table["image_bytes"]).as_py() or 0)
        last_shards.append(pc.max(table["shard"]).as_py())
    return PlanSummary(
        source=plan.source,
        output=plan.output,
        model_id=plan.model_id,
        images=plan.images.count,
        bytes=sum(sizes),
        shards=max(last_shards, default=-1) + 1,
        already_done=plan.already_done,
        retried=plan.retried,
        skipped=plan.skipped,
        policy_id=plan.policy_id,
    )


def pending_images(plan: RunPlan) -> PlannedImages:
    """The planned images whose shard has no part and that no other run has labelled.

    A mask key that another run has used since the plan was made is replaced.
    """
    finished = pa.array([shard for shard, _ in finished_parts(plan)], pa.int32())
    unfinished = keep_images(
        table.filter(pc.invert(pc.is_in(table["shard"], finished))) for table in plan.images.tables()
    )
    with scratch() as connection:
        _define_images(connection, Path(unfinished.files[0].uri), "mask_key")
        connection.execute("CREATE VIEW wanted_images AS FROM images")
        if not load_rows(connection, plan.output, plan.model_id, plan.retry):
            return unfinished
        pending = keep_images(_without_labelled(connection, plan, unfinished))
        _define_images(connection, Path(pending.files[0].uri), "mask_key")
        choose_mask_keys(connection)
        return keep_images(with_chosen(connection, pending.tables()))


def finished_parts(plan: RunPlan) -> list[tuple[int, str]]:
    """(shard, uri) of each part that this run has committed."""
    name = re.compile(re.escape(plan.run_id) + r"-(\d{5,})\.parquet")
    parts = store.list_parts_of_day(plan.output, plan.run_date)
    matches = ((name.fullmatch(part.key), part.uri) for part in parts)
    return [(int(match[1]), uri) for match, uri in matches if match]


def _define_images(connection: duckdb.DuckDBPyConnection, path: Path, stem: str) -> None:
    """Make the view `images` of a local file, for choose_mask_keys; stem: the column names are made of."""
    connection.execute(_IMAGES.format(stem=stem, path=str(path).replace("'", "''")))


def _wanted(connection: duckdb.DuckDBPyConnection, limit: int | None) -> Iterator[pa.Table]:
    """What is to be labelled (_WANTED_SCHEMA), in the order of its keys and all of it in shard 0."""
    for batch in connection.sql(_TO_LABEL, params={"limit": limit}).to_arrow_reader(BATCH_IMAGES):
        table = pa.Table.from_batches([batch])
        yield (
            table.append_column("shard", pa.array(np.zeros(len(table)), pa.int32()))
            .append_column("mask_key", natural_keys(table["image_key"]))
            .select(_WANTED_SCHEMA.names)
        )


def _chosen(connection: duckdb.DuckDBPyConnection, wanted: Path) -> Iterator[pa.Table]:
    for table in with_chosen(connection, read_tables(wanted)):
        yield table.select(PLAN_SCHEMA.names)


def _without_labelled(
    connection: duckdb.DuckDBPyConnection, plan: RunPlan, planned: PlannedImages
) -> Iterator[pa.Table]:
    """The images without those that other runs have labelled since they were planned."""
    newer_from = min(plan.newer_from or plan.created_at, plan.created_at + FARTHEST_AHEAD)
    connection.execute(
        _LABELLED_MEANWHILE, {"newer_from": newer_from, "newer_until": newer_from + FARTHEST_AHEAD}
    )
    first = 0
    for table in planned.tables():
        rows = {"first": first, "end": first + table.num_rows}
        labelled = connection.execute(_MEANWHILE, rows).fetchnumpy()["row"] - first
        yield table.filter(pa.array(_all_but(labelled, table.num_rows)))
        first += table.num_rows


def _cut_into_shards(
    read: Callable[[], Iterator[pa.Table]], sampled: np.ndarray, shard_images: int
) -> Iterator[pa.Table]:
    """The tables that `read` gives, the sampled rows (ascending) first, cut into shards."""
    n_images = 0
    for table in chain(_rows_of(read(), sampled), _other_rows(read(), sampled)):
        shards = np.arange(n_images, n_images + table.num_rows) // shard_images
        yield table.set_column(0, "shard", pa.array(shards, pa.int32()))
        n_images += table.num_rows


def _sample(n_images: int, shard_images: int, run_id: str) -> np.ndarray:
    """Ascending rows for the first shard, drawn at random, seeded by the run id; none of a single shard."""
    if n_images <= shard_images:
        return np.array([], np.int64)
    random = np.random.default_rng(list(run_id.encode()))
    return np.sort(random.choice(n_images, shard_images, replace=False))


def _rows_of(tables: Iterable[pa.Table], rows: np.ndarray) -> Iterator[pa.Table]:
    for table, those in _with_rows(tables if len(rows) else (), rows):
        yield table.take(those)


def _other_rows(tables: Iterable[pa.Table], rows: np.ndarray) -> Iterator[pa.Table]:
    for table, those in _with_rows(tables, rows):
        yield table.filter(pa.array(_all_but(those, table.num_rows)))


def _with_rows(tables: Iterable[pa.Table], rows: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Each table with those of the rows (ascending) that it holds, counted from its own first."""
    first = 0
    for table in tables:
        begin, end = np.searchsorted(rows, [first, first + table.num_rows])
        yield table, rows[begin:end] - first
        first += table.num_rows


def _all_but(rows: np.ndarray, count: int) -> np.ndarray:
    kept = np.ones(count, bool)
    kept[rows] = False
    return kept
