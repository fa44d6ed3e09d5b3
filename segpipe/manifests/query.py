"""SQL over a manifest: one statement that only reads, and its result as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import chain, count
from typing import Any, Literal, get_args

import duckdb
import pandas as pd
import pyarrow as pa

from segpipe.errors import SegpipeError
from segpipe.manifests.plain_values import plain_values
from segpipe.manifests.views import VIEWS, open_views
from segpipe.redaction import redact

Format = Literal["table", "json", "csv"]

_LOSSY = re.compile(r"\b(UHUGEINT|TIME WITH TIME ZONE|TIMETZ|BIT|BIGNUM|VARINT|VARIANT|UNION)\b")
_READING = (
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # how DuckDB parses PIVOT
)


def query(output: str, sql: str) -> pa.Table:
    """The result of one reading SQL statement over the views of OUTPUT.

    Raises NotFoundError when OUTPUT does not exist, StorageError when a file of it cannot be read,
    SegpipeError when the SQL is wrong or would write.
    """
    try:
        with open_views(output) as connection:
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
