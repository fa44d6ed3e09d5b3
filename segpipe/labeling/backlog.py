"""What is left to label, worked out on local disk: an inventory and a manifest may both exceed memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from segpipe import storage
from segpipe.errors import DeniedError, NotFoundError
from segpipe.labeling.inventory import Inventory
from segpipe.labeling.inventory_list import OBJECT_SCHEMA
from segpipe.labeling.mask_keys import define_names
from segpipe.manifests import store
from segpipe.manifests.batches import large_batches
from segpipe.manifests.damage import naming_the_damaged
from segpipe.manifests.parts import manifests_root
from segpipe.storage.retry import explained

_LOOKS_AT_ONCE = 16
_ROWS_AT_ONCE = 65_536
_OPEN = ("storage", "denied", "archived")  # failures that may pass without a change of the image
_READABLE_CLASSES = [
    *("", "STANDARD", "STANDARD_IA", "ONEZONE_IA", "REDUCED_REDUNDANCY", "GLACIER_IR", "EXPRESS_ONEZONE")
]

# 128 bits stand for uri and etag: that two of 10 million meet has a chance of 10^-25.
_IDENTITY = "md5_number(image_uri || chr(0) || image_etag)"
_DONE_IDENTITIES = f"CREATE TABLE done_identities AS SELECT {_IDENTITY} AS identity FROM stream"  # noqa: S608
_BACKLOG = f"""
    CREATE TABLE backlog AS
    SELECT stream.* FROM stream ANTI JOIN done_identities ON {_IDENTITY} = identity;
    DROP TABLE done_identities"""  # noqa: S608
_LABELLED = """
    CREATE TABLE labelled (image_uri VARCHAR, image_etag VARCHAR, failure VARCHAR, labeled_at TIMESTAMPTZ,
                           mask_key VARCHAR);
    CREATE VIEW done AS FROM labelled WHERE failure IS NULL;
    CREATE VIEW failed AS FROM labelled WHERE failure IS NOT NULL;
    CREATE VIEW taken AS SELECT mask_key AS key FROM labelled WHERE mask_key IS NOT NULL;"""
# Of what is wanted 64 bits a name are kept: two that meet by chance let in a row that does no harm.
_WANTED_HASHES = """
    SELECT hash(image_uri) AS hash FROM wanted_images
    UNION ALL SELECT hash(stored_name(mask_key)) FROM wanted_images
    UNION ALL SELECT hash(unnest(png_folders(stored_name(mask_key)))) FROM wanted_images
    WHERE stored_name(mask_key) LIKE '%.png/%'"""
_WITH_KEY = """
    (SELECT *, substr(mask_uri, strpos(mask_uri, $marker) + length($marker)) AS mask_key FROM stream)"""
_HASHES = f"""
    SELECT place, hash(image_uri) AS uri, hash(coalesce(stored_name(mask_key), '')) AS name,
           coalesce(mask_key LIKE '%~%' OR stored_name(mask_key) LIKE '%.png/%', false) AS odd
    FROM {_WITH_KEY}"""  # noqa: S608
_ADD_ROWS = f"""
    INSERT INTO labelled
    SELECT image_uri, image_etag,
           CASE WHEN decision = 'failed' AND list_contains($open, reason) THEN reason END AS failure,
           labeled_at, mask_key
    FROM {_WITH_KEY}"""  # noqa: S608
# The last failure decides. An object can be read again once a list names another class than the cold ones;
# of INTELLIGENT_TIERING no list tells where an object lies.
_LEAVE_REFUSED_ALONE = """
    DELETE FROM backlog WHERE EXISTS (
        FROM (SELECT image_uri, image_etag, arg_max(failure, labeled_at) AS last
              FROM failed GROUP BY image_uri, image_etag) AS found
        WHERE found.image_uri = backlog.image_uri
            AND (backlog.image_etag IS NULL OR found.image_etag = backlog.image_etag)
            AND NOT list_contains($retry, last)
            AND (last = 'denied'
                 OR (last = 'archived' AND NOT coalesce(list_contains($readable, storage_class), false))))"""
# An ETag that a list does not give, or that differs from the one labelled, says nothing for certain.
_UNCERTAIN = """
    SELECT DISTINCT image_uri, bool_and(image_etag IS NULL) AS unseen
    FROM backlog SEMI JOIN done USING (image_uri) GROUP BY image_uri"""
_DOUBLED = """
    CREATE TABLE doubled AS SELECT hash(image_uri) AS uri FROM backlog GROUP BY ALL HAVING count(*) > 1"""
_UNSETTLED = """
    INSERT INTO doubled SELECT hash(image_uri) FROM current;
    CREATE TABLE unsettled AS FROM backlog WHERE hash(image_uri) IN (SELECT uri FROM doubled);
    DELETE FROM backlog WHERE hash(image_uri) IN (SELECT uri FROM doubled)"""
_SETTLE = """
    CREATE TABLE settled AS
    SELECT image_uri, image_key, coalesce(current.image_etag, unsettled.image_etag, '') AS image_etag,
           image_bytes, storage_class
    FROM unsettled LEFT JOIN current USING (image_uri)
    QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY unsettled.image_etag) = 1;
    DELETE FROM settled WHERE EXISTS (FROM done WHERE done.image_uri = settled.image_uri
                                                  AND done.image_etag = settled.image_etag);
    DELETE FROM settled WHERE image_uri IN (SELECT image_uri FROM current WHERE unchanged);
    INSERT INTO backlog BY NAME FROM settled"""


def find_backlog(
    connection: duckdb.DuckDBPyConnection,
    inventory: Inventory,
    output: str,
    model_id: str,
    retry: Collection[str],
) -> int:
    """Make the table `backlog` (OBJECT_SCHEMA): what this model has no row for. Returns how many have one.

    Makes the views of `load_rows` as well. What failed in storage, or for a reason in retry, is in it again;
    so is an archived image that now lies in a class that can be read. A list may be out of date: where it
    gives another ETag than the one labelled the object itself is asked, so that no image gets a second row;
    where it gives none, an image with a row counts as done.
    """
    labelled = _of_model(model_id) & ~_is_open(retry)
    done = store.scan_manifest(output, ["image_uri", "image_etag"], labelled)
    with explained(manifests_root(output)), naming_the_damaged(output):
        _run_on(connection, _DONE_IDENTITIES, done, _schema(["image_uri", "image_etag"]))
    n_objects = _run_on(connection, _BACKLOG, inventory.objects, OBJECT_SCHEMA)
    connection.execute(
        "CREATE VIEW wanted_images AS SELECT image_uri, image_key || '.png' AS mask_key FROM backlog"
    )
    if load_rows(connection, output, model_id, retry):
        classes = {"retry": list(retry), "readable": _READABLE_CLASSES}
        connection.execute(_LEAVE_REFUSED_ALONE, classes)
    if not inventory.live:
        _settle(connection)
    return n_objects - connection.sql("SELECT count(*) AS n FROM backlog").to_arrow_table()["n"][0].as_py()


def load_rows(
    connection: duckdb.DuckDBPyConnection, output: str, model_id: str, retry: Collection[str]
) -> bool:
    """Make the views `done`, `failed` and `taken(key)`, the mask keys in use, of this model's rows.

    failed holds what may be tried again: after a failure in storage, a refusal, or for a reason in retry; the
    old row stays, as the fact it is. They hold what matters for the relation `wanted_images` (image_uri,
    mask_key): its images, masks in its way. Whether they hold anything.
    """
    define_names(connection, output)
    connection.execute(_LABELLED)
    columns = ["image_uri", "image_etag", "decision", "reason", "labeled_at", "mask_uri"]
    rows = store.scan_manifest(output, columns, _of_model(model_id))
    marker = {"marker": f"/masks/{model_id}/"}
    with explained(manifests_root(output)), naming_the_damaged(output):
        first = next((batch for batch in rows if batch.num_rows), None)
        if first is None:
            return False
        wanted = _wanted_hashes(connection)
        for table in large_batches(chain([first], rows), _ROWS_AT_ONCE):
            # DuckDB answers in any order here.
            connection.register("stream", table.append_column("place", pa.array(np.arange(len(table)))))
            hashes = connection.execute(_HASHES, marker).fetchnumpy()
            touching = hashes["odd"] | _among(hashes["uri"], wanted) | _among(hashes["name"], wanted)
            if touching.any():
                connection.register("stream", table.take(pa.array(hashes["place"][touching])))
                connection.execute(_ADD_ROWS, marker | {"open": [*_OPEN, *retry]})
    return bool(connection.execute("SELECT count(*) > 0 FROM labelled").fetchall()[0][0])


def _wanted_hashes(connection: duckdb.DuckDBPyConnection) -> np.ndarray:
    """The hashes of the uris, names and folders of `wanted_images`, ascending: 16 bytes an image."""
    held = bytearray()  # grows in place, where concatenated arrays would take twice as much
    for batch in connection.sql(_WANTED_HASHES).to_arrow_reader(_ROWS_AT_ONCE):
        held += batch["hash"].to_numpy().tobytes()
    hashes = np.frombuffer(held, np.uint64)
    hashes.sort()
    return hashes


def _among(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which hashes are among the wanted ones (ascending)."""
    if not len(wanted):
        return np.zeros(len(hashes), bool)
    order = np.argsort(hashes)  # looked up in order, neighbours lie near each other in memory
    places = np.searchsorted(wanted, hashes[order])
    found = np.empty(len(hashes), bool)
    found[order] = wanted[np.minimum(places, len(wanted) - 1)] == hashes[order]
    return found


def _of_model(model_id: str) -> ds.Expression:
    return ds.field("model_id") == model_id


def _is_open(retry: Collection[str]) -> ds.Expression:
    return (ds.field("decision") == "failed") & ds.field("reason").isin([*_OPEN, *retry])


def _schema(columns: list[str]) -> pa.Schema:
    return pa.schema([store.MANIFEST_SCHEMA.field(name) for name in columns])


def _run_on(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    parameters: dict[str, Any] | None = None,
) -> int:
    """Run SQL over the batches as the relation `stream`; returns their rows. Raises what they raise."""
    n_rows, raised = 0, list[BaseException]()

    def watched() -> Iterator[pa.RecordBatch]:
        nonlocal n_rows
        try:
            for batch in batches:
                n_rows += batch.num_rows
                yield batch
        except GeneratorExit:
            raise
        except BaseException as error:  # DuckDB would pass on the text only, of a signal too
            raised.append(error)
            raise

    try:
        connection.register("stream", pa.RecordBatchReader.from_batches(schema, watched()))
        connection.execute(sql, parameters)
    except (duckdb.Error, RuntimeError):
        if raised:
            raise raised[0] from None
        raise
    finally:
        connection.unregister("stream")
    return n_rows


def _settle(connection: duckdb.DuckDBPyConnection) -> None:
    """Leave in `backlog` one row per image, and none of an image that is labelled as it is now."""
    uncertain = connection.sql(_UNCERTAIN).to_arrow_table().to_pylist()
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        etags = list(pool.map(lambda row: None if row["unseen"] else _etag(row["image_uri"]), uncertain))
    current = {
        "image_uri": pa.array([row["image_uri"] for row in uncertain], pa.string()),
        "image_etag": pa.array(etags, pa.string()),
        "unchanged": pa.array([row["unseen"] for row in uncertain], pa.bool_()),
    }
    connection.register("current", pa.table(current))
    connection.execute(_DOUBLED)
    if uncertain or connection.sql("SELECT 1 FROM doubled LIMIT 1").fetchall():
        connection.execute(_UNSETTLED)
        connection.execute(_SETTLE)


def _etag(uri: str) -> str | None:
    """The object's ETag now; None when it is gone or denied, which labelling finds out and says."""
    try:
        return storage.etag(uri)
    except (NotFoundError, DeniedError):
        return None
