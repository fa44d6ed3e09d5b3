"""What is left to label, worked out on local disk: an inventory and a manifest may both exceed memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from segpipe import storage
from segpipe.errors import NotFoundError
from segpipe.labeling.inventory import Inventory
from segpipe.manifests import store
from segpipe.manifests.batches import large_batches
from segpipe.manifests.parts import manifests_root
from segpipe.manifests.sql import scratch
from segpipe.storage_errors import explained

_ROW_COLUMNS = ["image_uri", "image_etag", "decision", "reason", "labeled_at", "mask_uri"]
_BATCH_ROWS, _READAHEAD = 65_536, 4  # what bounds the memory of a scan
_LOOKS_AT_ONCE = 16

# What failed in storage is tried again; the old row stays, as the fact it is.
_LABELLED = """
    CREATE TABLE labelled (image_uri VARCHAR, image_etag VARCHAR, in_vain BOOLEAN, labeled_at TIMESTAMPTZ,
                           mask_key VARCHAR);
    CREATE VIEW done AS FROM labelled WHERE NOT in_vain;
    CREATE VIEW storage_failures AS FROM labelled WHERE in_vain;
    CREATE VIEW taken AS SELECT mask_key AS key FROM labelled WHERE mask_key IS NOT NULL;"""
_ADD_ROWS = """
    INSERT INTO labelled
    SELECT image_uri, image_etag, decision = 'failed' AND reason = 'storage', labeled_at,
           substr(mask_uri, strpos(mask_uri, $marker) + length($marker))
    FROM batch"""
_INVENTORY = (
    "CREATE TABLE inventory (image_uri VARCHAR, image_key VARCHAR, image_etag VARCHAR, image_bytes BIGINT)"
)
_BACKLOG = "CREATE TABLE backlog AS FROM inventory ANTI JOIN done USING (image_uri, image_etag)"
# An ETag that a list does not give, or that differs from the one labelled, says nothing for certain.
_UNCERTAIN = """
    SELECT DISTINCT image_uri, bool_and(image_etag IS NULL) AS unseen
    FROM backlog SEMI JOIN done USING (image_uri) GROUP BY image_uri"""
_SETTLE = """
    CREATE OR REPLACE TABLE backlog AS
    SELECT image_uri, image_key, coalesce(current.image_etag, backlog.image_etag, '') AS image_etag, image_bytes
    FROM backlog LEFT JOIN current USING (image_uri)
    QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY backlog.image_etag) = 1;
    DELETE FROM backlog WHERE EXISTS (FROM done WHERE done.image_uri = backlog.image_uri
                                                  AND done.image_etag = backlog.image_etag);
    DELETE FROM backlog WHERE image_uri IN (SELECT image_uri FROM current WHERE unchanged)"""


@contextmanager
def labelled_rows(output: str, model_id: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with this model's rows: `done`, `storage_failures`, and `taken(key)`, the mask keys in use."""
    rows = store.open_manifest(output).scanner(
        columns=_ROW_COLUMNS,
        filter=ds.field("model_id") == model_id,
        batch_size=_BATCH_ROWS,
        batch_readahead=_READAHEAD,
        fragment_readahead=_READAHEAD,
    )
    with scratch() as connection, explained(manifests_root(output)):
        connection.execute(_LABELLED)
        for batch in large_batches(rows.to_batches(), _BATCH_ROWS):
            connection.register("batch", batch)
            connection.execute(_ADD_ROWS, {"marker": f"/masks/{model_id}/"})
        yield connection


def find_backlog(connection: duckdb.DuckDBPyConnection, inventory: Inventory) -> int:
    """Make the table `backlog` (OBJECT_SCHEMA): what has no row yet. Returns how many objects have one.

    A list may be out of date: where it gives another ETag than the one labelled, the object itself is asked,
    so that no image gets a second row; where it gives none, an image with a row counts as done.
    """
    connection.execute(_INVENTORY)
    for batch in inventory.objects:
        connection.register("batch", pa.table(batch))
        connection.execute("INSERT INTO inventory FROM batch")
    connection.execute(_BACKLOG)
    if not inventory.live:
        _settle(connection)
    return _count(connection, "inventory") - _count(connection, "backlog")


def _settle(connection: duckdb.DuckDBPyConnection) -> None:
    uncertain = connection.sql(_UNCERTAIN).to_arrow_table().to_pylist()
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        etags = list(pool.map(lambda row: None if row["unseen"] else _etag(row["image_uri"]), uncertain))
    current = {
        "image_uri": pa.array([row["image_uri"] for row in uncertain], pa.string()),
        "image_etag": pa.array(etags, pa.string()),
        "unchanged": pa.array([row["unseen"] for row in uncertain], pa.bool_()),
    }
    connection.register("current", pa.table(current))
    connection.execute(_SETTLE)


def _etag(uri: str) -> str | None:
    """The object's ETag now; None when it is gone, which labelling finds out and says."""
    try:
        return storage.etag(uri)
    except NotFoundError:
        return None


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return connection.sql(f"SELECT count(*) AS n FROM {table}").to_arrow_table()["n"][0].as_py()
