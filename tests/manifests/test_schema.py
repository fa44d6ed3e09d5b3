"""The manifest row is contract C5: names, types and order are what readers in other tools rely on."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, date, datetime

import pandas as pd
import pyarrow as pa
import pytest

from segpipe.manifests.query import query
from segpipe.manifests.schema import ROW_SCHEMA, Row, rows_table
from segpipe.manifests.store import MANIFEST_SCHEMA, commit_part

CONTRACT = [
    ("image_uri", "string"),
    ("image_etag", "string"),
    ("image_bytes", "int64"),
    ("image_width", "int32"),
    ("image_height", "int32"),
    ("mask_uri", "string"),
    ("mask_sha256", "string"),
    ("decision", "string"),
    ("reason", "string"),
    ("confidence", "double"),
    ("discriminator_score", "double"),
    ("class_fractions", "list<item: float>"),
    ("class_confidences", "list<item: float>"),
    ("audit", "bool"),
    ("inclusion_probability", "double"),
    ("model_id", "string"),
    ("policy_id", "string"),
    ("run_id", "string"),
    ("shard", "int32"),
    ("labeled_at", "timestamp[us, tz=UTC]"),
    ("error", "string"),
    ("confidence_map_uri", "string"),
    ("drawn", "bool"),
    ("draw_probability", "double"),
    ("from_scratch", "bool"),
]


@pytest.fixture
def row() -> Row:
    return Row(
        image_uri="/bucket/a.jpg",
        image_etag="e1",
        image_bytes=2**40,
        image_width=640,
        image_height=480,
        mask_uri="/out/masks/m/a.jpg.png",
        mask_sha256="ab",
        decision="review",
        reason="low_confidence",
        confidence=0.5,
        discriminator_score=-1.25,
        class_fractions=[0.75, 0.25],
        class_confidences=[0.5, None],
        audit=False,
        inclusion_probability=0.0,
        model_id="m",
        policy_id=None,
        run_id="r",
        shard=3,
        labeled_at=datetime(2026, 11, 23, 12, 0, 0, 5, tzinfo=UTC),
        error=None,
        confidence_map_uri=None,
    )


def test_columns_are_those_of_the_contract() -> None:
    assert [(field.name, str(field.type)) for field in ROW_SCHEMA] == CONTRACT
    assert [field.name for field in fields(Row)] == ROW_SCHEMA.names


def test_a_row_comes_back_from_the_table_as_it_went_in(row: Row) -> None:
    table = rows_table([row], ["sky", "road"])
    assert table.schema.equals(ROW_SCHEMA)
    assert table.to_pylist() == [{field.name: getattr(row, field.name) for field in fields(row)}]


def test_types_do_not_depend_on_the_rows(row: Row) -> None:
    assert rows_table([], ["sky"]).schema.types == rows_table([row], ["sky"]).schema.types


def test_metadata_names_schema_version_classes_and_what_the_caller_adds(row: Row) -> None:
    metadata = rows_table([row], ["sky", "road"], {"segpipe.seconds": "1.5"}).schema.metadata
    assert metadata[b"segpipe.schema_version"] == b"3"
    assert json.loads(metadata[b"segpipe.classes"]) == ["sky", "road"]
    assert metadata[b"segpipe.seconds"] == b"1.5"


@pytest.mark.parametrize("newer", ["r1", "r3"])
def test_parts_of_schema_version_1_read_together_with_new_ones(tmp_path, row: Row, newer: str) -> None:
    output, day = str(tmp_path), date(2026, 11, 23)
    older = rows_table([replace(row, run_id="r2")], ["sky"]).drop_columns(["confidence_map_uri"])
    map_uri = "/out/confidence_maps/m/a.jpg.png"
    new = rows_table([replace(row, run_id=newer, confidence_map_uri=map_uri)], ["sky"])
    assert commit_part(output, day, "r2", 0, older)
    assert commit_part(output, day, newer, 0, new)

    found = query(output, "SELECT run_id, confidence_map_uri FROM labels").to_pylist()
    expected = {"r2": None, newer: map_uri}
    assert {row["run_id"]: row["confidence_map_uri"] for row in found} == expected
    frame = pd.read_parquet(tmp_path / "manifests", schema=MANIFEST_SCHEMA)
    assert frame.set_index("run_id").confidence_map_uri.dropna().to_dict() == {newer: map_uri}
    assert len(frame) == 2
    # Without a schema pandas takes the columns of the first part it finds.
    plain = pd.read_parquet(tmp_path / "manifests")
    assert set(plain.run_id) == {"r2", newer}
    assert ("confidence_map_uri" in plain) == (newer == "r1")


def test_the_list_columns_are_null_for_a_failed_row_not_empty(row: Row) -> None:
    failed = Row(**{**vars(row), "decision": "failed", "class_fractions": None, "class_confidences": None})
    assert rows_table([failed], ["sky"])["class_fractions"].null_count == 1
    assert pa.types.is_list(rows_table([failed], ["sky"])["class_fractions"].type)
