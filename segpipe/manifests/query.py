"""SQL over a manifest: DuckDB views on the Parquet parts, and results as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, Literal, get_args

import duckdb
import pandas as pd
import pyarrow as pa

from segpipe import storage
from segpipe.errors import SegpipeError
from segpipe.manifests.parts import require_output
from segpipe.manifests.plain_values import plain_values
from segpipe.manifests.reviews import open_reviews
from segpipe.manifests.sql import connect
from segpipe.manifests.store import open_manifest
from segpipe.redaction import redact

Format = Literal["table", "json", "csv"]

VIEWS = {
    "labels": "SELECT * FROM parts",
    "latest": """
        SELECT * FROM labels
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
            AND verdict IS NULL AND (audit OR final_mask_uri IS NULL)""",
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

_LOSSY = re.compile(r"\b(UHUGEINT|TIME WITH TIME ZONE|TIMETZ|BIT|BIGNUM|VARINT|VARIANT|UNION)\b")
_READING = (
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # how DuckDB parses PIVOT
)


def query(output: str, sql: str) -> pa.Table:
    """The result of one reading SQL statement over the views of OUTPUT.

    Raises NotFoundError when OUTPUT does not exist, SegpipeError when the SQL is wrong or would write.
    """
    with open_views(output) as connection:
        try:
            _require_reading(connection.extract_statements(sql))
            return _uniquely_named(_kept_whole(connection.sql(sql)).to_arrow_table())
        except duckdb.Error as error:
            raise SegpipeError(f"query failed: {_one_line(error)} (views: {', '.join(VIEWS)})") from error


def _kept_whole(result: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The result with text for what Arrow holds in part only: a time zone, more digits than 38, and so on."""
    is_lossy = [_LOSSY.search(str(kind)) is not None for kind in result.types]
    if not any(is_lossy):
        return result
    names = ['"' + name.replace('"', '""') + '"' for name in result.columns]
    columns = [
        f"CAST(#{place} AS VARCHAR) AS {name}" if lossy else f"#{place} AS {name}"
        for place, (name, lossy) in enumerate(zip(names, is_lossy, strict=True), 1)
    ]
    return result.project(", ".join(columns))


def _uniquely_named(table: pa.Table) -> pa.Table:
    """Columns of one name are told apart by a number, since a record has each name once."""
    names: list[str] = []
    for name in table.column_names:
        numbered = (f"{name}_{number}" for number in count(1))
        taken = {*names, *table.column_names}
        names.append(name if name not in names else next(one for one in numbered if one not in taken))
    return table.rename_columns(names)


@contextmanager
def open_views(output: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that sees the views of OUTPUT and nothing else of this machine."""
    output = storage.normalise(output)
    require_output(output)
    with connect() as connection:
        connection.register("parts", open_manifest(output))
        connection.register("review_parts", open_reviews(output))
        for name, sql in VIEWS.items():
            connection.execute(f"CREATE VIEW {name} AS {sql}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def _require_reading(statements: list[duckdb.Statement]) -> None:
    if len(statements) != 1:
        raise SegpipeError(f"query takes one SQL statement, this has {len(statements)}")
    if statements[0].type not in _READING:
        raise SegpipeError(
            f"query only reads: use SELECT instead of {statements[0].type.name.replace('_', ' ')}"
        )


def _one_line(error: duckdb.Error) -> str:
    said = str(error).partition("\nLINE ")[0]
    return redact(" ".join(said.split()))


def format_table(table: pa.Table, style: Format) -> str:
    """The table as text: `table` for people, `json` a list of records, `csv` with a header line.

    All have the same columns and rows, with the values of plain_values; `table` shortens numbers.
    """
    if style == "json":
        return json.dumps(_records(table), indent=2, ensure_ascii=False)
    if style == "csv":
        return _csv_text(table)
    if style == "table":
        return _aligned_text(table)
    raise SegpipeError(f"unknown format {style!r}: choose one of {', '.join(get_args(Format))}")


def _records(table: pa.Table) -> list[dict[str, Any]]:
    return [dict(zip(table.column_names, row, strict=True)) for row in _plain_rows(table)]


def _plain_rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    chunks = ([plain_values(chunk) for chunk in column.chunks] for column in table.columns)
    return zip(*(chain.from_iterable(column) for column in chunks), strict=True)


def _csv_text(table: pa.Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([_csv_cell(value) for value in row] for row in _plain_rows(table))
    return text.getvalue().removesuffix("\n")


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _aligned_text(table: pa.Table) -> str:
    rows = [[_cell(value) for value in row] for row in _plain_rows(table)]
    if not rows:
        return "  ".join(table.column_names) + "\n(no rows)"
    return pd.DataFrame(rows, columns=table.column_names).to_string(index=False, max_colwidth=None)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case list():
            return "[" + ", ".join(_cell(item) or "null" for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{name}: {_cell(item) or 'null'}" for name, item in value.items()) + "}"
        case _:
            return str(value)
