"""The lines in docs/manifests.md for readers of parts of different age are right: they run as they stand."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from segpipe import storage
from segpipe.manifests.query import query
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import part_uri, table_bytes
from tests.conftest import ROW_DEFAULTS

PAGE = (Path(__file__).parents[2] / "docs" / "manifests.md").read_text()
MAPS = {"old.png": None, "new.png": "map.png"}


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A part of before confidence_map_uri, then one with it, and something else that is Parquet."""
    output = str(tmp_path / "OUTPUT")
    for day, (image, where) in enumerate(MAPS.items(), 1):
        table = rows_table(
            [Row(**ROW_DEFAULTS | {"image_uri": image, "confidence_map_uri": where})], ["sky", "road"]
        )
        table = table if where else table.drop_columns(["confidence_map_uri"])
        storage.create(part_uri(output, date(2026, 1, day), f"r{day}", 0), table_bytes(table))
        storage.create(f"{output}/runs/r{day}/plan.parquet", table_bytes(table.select(["image_uri"])))
    return output


def block(language: str, output: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)
    return found.replace("OUTPUT", output)


def maps_of(frame: pd.DataFrame) -> dict[str, str | None]:
    assert sorted(frame["run_date"].astype(str)) == ["2026-01-01", "2026-01-02"]
    maps = frame["confidence_map_uri"].fillna("")
    return {image: uri or None for image, uri in zip(frame["image_uri"], maps, strict=True)}


def test_pyarrow_and_pandas(output: str) -> None:
    names: dict[str, pd.DataFrame] = {}
    exec(block("python", output), names)
    assert maps_of(names["frame"]) == MAPS


def test_duckdb(output: str) -> None:
    with duckdb.connect() as connection:
        assert maps_of(connection.sql(block("sql", output)).df()) == MAPS


def test_polars(output: str) -> None:
    pytest.importorskip("polars")
    names: dict[str, object] = {}
    exec(block("polars", output), names)
    assert dict(names["frame"].select("image_uri", "confidence_map_uri").iter_rows()) == MAPS  # type: ignore[attr-defined]


def test_segpipe_itself(output: str) -> None:
    assert maps_of(query(output, "FROM labels").to_pandas()) == MAPS


def test_what_the_page_warns_of_is_so(output: str) -> None:
    assert "confidence_map_uri" not in pd.read_parquet(f"{output}/manifests")
    with duckdb.connect() as connection:
        with pytest.raises(duckdb.BinderException, match="confidence_map_uri"):
            connection.sql(f"SELECT confidence_map_uri FROM '{output}/manifests/**/*.parquet'")
        everything = f"FROM read_parquet('{output}/**/*.parquet', union_by_name = true)"
        assert len(connection.sql(everything).fetchall()) == 4
