"""The SQL views over a manifest: labels, latest, accepted and the rest, on the Parquet parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from segpipe import storage
from segpipe.manifests.damage import naming_the_damaged
from segpipe.manifests.duckdb_engine import connect
from segpipe.manifests.far_ahead import saying_far_ahead
from segpipe.manifests.parts import require_output
from segpipe.manifests.reviews import read_reviews
from segpipe.manifests.store import open_manifest

VIEWS = {
    # A file of other columns would count as rows of nulls; what it is, naming_the_damaged finds out.
    "labels": """
        SELECT * FROM parts
        WHERE CASE WHEN run_id IS NULL THEN error('a row has no run_id') ELSE true END""",
    "latest": """
        SELECT * FROM labels WHERE told_if_far_ahead(run_id, labeled_at)
        QUALIFY row_number() OVER (
            PARTITION BY image_uri ORDER BY labeled_at DESC, run_id DESC, shard DESC) = 1""",
    # Of several decisions about one mask the newest holds.
    "reviews": """
        SELECT * FROM review_parts
        QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY reviewed_at DESC, review_id DESC) = 1""",
    # What a person has drawn or confirmed is right for the image, whichever model has labelled it since.
    "reviewed": """
        SELECT l.*, r.verdict, f.final_mask_uri, f.final_mask_sha256
        FROM latest l
        LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
            = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
        LEFT JOIN (
            SELECT * FROM reviews WHERE final_mask_uri IS NOT NULL
            QUALIFY row_number() OVER (
                PARTITION BY image_uri, image_etag ORDER BY reviewed_at DESC, review_id DESC) = 1
        ) f ON (f.image_uri, f.image_etag) = (l.image_uri, l.image_etag)""",
    "accepted": """
        SELECT * EXCLUDE (verdict, final_mask_uri, final_mask_sha256)
            REPLACE (coalesce(final_mask_uri, mask_uri) AS mask_uri,
                coalesce(final_mask_sha256, mask_sha256) AS mask_sha256)
        FROM reviewed
        WHERE final_mask_uri IS NOT NULL
            OR (decision = 'accepted' AND verdict IS DISTINCT FROM 'rejected')""",
    "review_queue": """
        SELECT * EXCLUDE (verdict, final_mask_uri, final_mask_sha256) FROM reviewed
        WHERE (decision = 'review' OR (decision = 'accepted' AND audit))
            AND verdict IS NULL AND (audit OR drawn IS TRUE OR final_mask_uri IS NULL)""",
    "failures": "SELECT * FROM latest WHERE decision = 'failed'",
    "runs": """
        SELECT run_id, model_id,
            min(labeled_at) AS started_at,
            max(labeled_at) AS finished_at,
            count(*) AS images,
            count(*) FILTER (decision = 'accepted') AS accepted,
            count(*) FILTER (decision = 'review') AS review,
            count(*) FILTER (decision = 'failed') AS failed,
            avg(confidence) AS mean_confidence
        FROM labels GROUP BY run_id, model_id ORDER BY started_at""",
}


@contextmanager
def open_views(output: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that sees the views of OUTPUT and nothing else of this machine.

    Raises NotFoundError, StorageError; also, from within, when a part turns out to be damaged.
    """
    output = storage.normalise(output)
    require_output(output)
    with naming_the_damaged(output), connect() as connection:
        manifest = open_manifest(output)
        connection.register("parts", manifest)
        connection.register("review_parts", read_reviews(output))
        with saying_far_ahead(connection, manifest, output):
            for name, sql in VIEWS.items():
                connection.execute(f"CREATE VIEW {name} AS {sql}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection
