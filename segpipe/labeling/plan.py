"""What a run will label: the inventory without what this model has labelled, cut into shards.

When there are several shards the first is a random sample of the planned images, so that what its scores say
about drift holds for the run; the others follow in the order of the images' keys.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime
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
from segpipe.labeling.mask_keys import assign_mask_keys, natural_keys
from segpipe.labeling.stamps import first_stamp, rows_ahead
from segpipe.manifests import store
from segpipe.manifests.duckdb_engine import scratch
from segpipe.manifests.parts import RUN_ID
from segpipe.manifests.schema import FARTHEST_AHEAD
from segpipe.tiles import Tiling

if TYPE_CHECKING:
    from segpipe.config import LabelSettings

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("image_uri", pa.string()),
        ("image_etag", pa.string()),
        ("image_bytes", pa.int64()),
        ("mask_key", pa.string()),
    ]
)

_TO_LABEL = "FROM backlog ORDER BY image_key LIMIT $limit"
_RETRIED = "SELECT count(*) AS n FROM planned SEMI JOIN failed USING (image_uri, image_etag)"
# An image that another run labelled after this plan was made waits for the next plan even if its ETag
# differs: this plan chose its mask key before that mask was there.
_PENDING = """
    FROM planned
    WHERE NOT list_contains($finished::INTEGER[], shard) AND NOT EXISTS (
        FROM done WHERE done.image_uri = planned.image_uri
            AND (done.image_etag = planned.image_etag
                 OR (done.labeled_at >= $newer_from AND done.labeled_at < $newer_until)))
    ORDER BY shard, image_uri"""


@dataclass(frozen=True)
class RunPlan:
    """A run's plan: `table` (PLAN_SCHEMA, ordered by shard) names each image and where its mask goes.

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
    table: pa.Table
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
    with scratch() as connection:
        already_done = find_backlog(connection, inventory, output, model_id, settings.retry)
        images = connection.sql(_TO_LABEL, params={"limit": limit}).to_arrow_table()
        return RunPlan(
            run_id=run_id,
            created_at=now.astimezone(UTC),
            source=source,
            output=output,
            model_id=model_id,
            policy_id=policy_id,
            already_done=already_done,
            retried=_count_retried(connection, images),
            skipped={name: count for name, count in sorted(inventory.skipped.items()) if count},
            table=_cut_into_shards(_plan_table(connection, images), settings.shard_images, run_id),
            model_digest=model_digest,
            retry=settings.retry,
            newer_from=first_stamp(rows_ahead(output, now), now.astimezone(UTC)),
        )


def summarise_plan(plan: RunPlan) -> PlanSummary:
    """The plan in numbers."""
    return PlanSummary(
        source=plan.source,
        output=plan.output,
        model_id=plan.model_id,
        images=plan.table.num_rows,
        bytes=pc.sum(plan.table["image_bytes"]).as_py() or 0,
        shards=pc.count_distinct(plan.table["shard"]).as_py(),
        already_done=plan.already_done,
        retried=plan.retried,
        skipped=plan.skipped,
        policy_id=plan.policy_id,
    )


def pending_images(plan: RunPlan) -> pa.Table:
    """The planned images (PLAN_SCHEMA) whose shard has no part and that no other run has labelled.

    A mask key that another run has used since the plan was made is replaced.
    """
    newer_from = min(plan.newer_from or plan.created_at, plan.created_at + FARTHEST_AHEAD)
    parameters = {
        "finished": [shard for shard, _ in finished_parts(plan)],
        "newer_from": newer_from,
        "newer_until": newer_from + FARTHEST_AHEAD,
    }
    with scratch() as connection:
        connection.register("planned", plan.table)
        connection.execute("CREATE VIEW wanted AS SELECT image_uri, mask_key FROM planned")
        load_rows(connection, plan.output, plan.model_id, plan.retry)
        pending = connection.sql(_PENDING, params=parameters).to_arrow_table().cast(PLAN_SCHEMA)
        images = pending.append_column("image_key", pending["mask_key"])
        mask_keys = assign_mask_keys(connection, images, pending["mask_key"].combine_chunks())
    return pending.set_column(PLAN_SCHEMA.names.index("mask_key"), "mask_key", mask_keys)


def finished_parts(plan: RunPlan) -> list[tuple[int, str]]:
    """(shard, uri) of each part that this run has committed."""
    name = re.compile(re.escape(plan.run_id) + r"-(\d{5,})\.parquet")
    parts = store.list_parts_of_day(plan.output, plan.run_date)
    matches = ((name.fullmatch(part.key), part.uri) for part in parts)
    return [(int(match[1]), uri) for match, uri in matches if match]


def _count_retried(connection: duckdb.DuckDBPyConnection, images: pa.Table) -> int:
    connection.register("planned", images)
    return connection.sql(_RETRIED).to_arrow_table()["n"][0].as_py()


def _plan_table(connection: duckdb.DuckDBPyConnection, images: pa.Table) -> pa.Table:
    """The images in the order of their keys, as PLAN_SCHEMA with all of them in shard 0."""
    columns = {
        "shard": pa.array(np.zeros(images.num_rows), pa.int32()),
        "image_uri": images["image_uri"],
        "image_etag": images["image_etag"],
        "image_bytes": images["image_bytes"],
        "mask_key": assign_mask_keys(connection, images, natural_keys(images["image_key"])),
    }
    return pa.table(columns).cast(PLAN_SCHEMA)


def _cut_into_shards(table: pa.Table, shard_images: int, run_id: str) -> pa.Table:
    n_images = table.num_rows
    shards = np.arange(n_images) // shard_images
    if n_images > shard_images:
        table = table.take(_sample_first(n_images, shard_images, run_id))
    return table.set_column(0, "shard", pa.array(shards, pa.int32()))


def _sample_first(n_images: int, n_sampled: int, run_id: str) -> np.ndarray:
    """The rows 0 to n_images - 1: a random sample, seeded by the run id, then the rest; each in order."""
    random = np.random.default_rng(list(run_id.encode()))
    sampled = np.sort(random.choice(n_images, n_sampled, replace=False))
    return np.concatenate([sampled, np.setdiff1d(np.arange(n_images), sampled)])
