"""A part is whole or absent, created once, and every reader sees the same columns at any moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from segpipe import storage
from segpipe.errors import StorageError
from segpipe.manifests.parts import list_parts
from segpipe.manifests.schema import ROW_SCHEMA, Row, rows_table
from segpipe.manifests.store import commit_part, part_uri, read_manifest, table_bytes

DAY = date(2026, 11, 23)
MakeRow = Callable[..., Row]


def test_a_part_lies_where_the_contract_says() -> None:
    assert part_uri("s3://b/out", DAY, "r1", 7) == "s3://b/out/manifests/run_date=2026-11-23/r1-00007.parquet"


def test_an_output_without_parts_reads_as_no_rows_of_the_full_schema(storage_root: str) -> None:
    table = read_manifest(f"{storage_root}/out")
    assert table.num_rows == 0
    assert table.schema.names == [*ROW_SCHEMA.names, "run_date"]


def test_committed_rows_are_read_back_with_their_day(storage_root: str, make_row: MakeRow) -> None:
    output = f"{storage_root}/out"
    assert commit_part(output, DAY, "r1", 0, rows_table([make_row(image_uri="a")], ["sky"]))
    assert commit_part(output, date(2026, 11, 24), "r2", 0, rows_table([make_row(image_uri="b")], ["sky"]))
    table = read_manifest(output, columns=["image_uri", "run_date"])
    assert table.to_pylist() == [
        {"image_uri": "a", "run_date": DAY},
        {"image_uri": "b", "run_date": date(2026, 11, 24)},
    ]
    only = read_manifest(output, columns=["image_uri"], where=ds.field("run_date") == date(2026, 11, 24))
    assert only["image_uri"].to_pylist() == ["b"]


def test_a_part_is_created_once_and_never_changed(storage_root: str, make_row: MakeRow) -> None:
    output = f"{storage_root}/out"
    assert commit_part(output, DAY, "r1", 0, rows_table([make_row(image_uri="first")], ["sky"]))
    assert not commit_part(output, DAY, "r1", 0, rows_table([make_row(image_uri="second")], ["sky"]))
    assert read_manifest(output)["image_uri"].to_pylist() == ["first"]
    assert [part.key for part in list_parts(output)] == ["run_date=2026-11-23/r1-00000.parquet"]


def test_of_many_who_commit_one_shard_exactly_one_wins(storage_root: str, make_row: MakeRow) -> None:
    output = f"{storage_root}/out"

    def commit(number: int) -> str | None:
        return commit_part(output, DAY, "r1", 0, rows_table([make_row(image_uri=f"{number}")], ["sky"]))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(commit, range(8)))
    (winner,) = [number for number, digest in enumerate(won) if digest is not None]
    assert read_manifest(output)["image_uri"].to_pylist() == [f"{winner}"]
    assert won[winner] == hashlib.sha256(storage.read_bytes(part_uri(output, DAY, "r1", 0))).hexdigest()


def test_a_part_of_an_older_version_without_a_column_reads_as_null(tmp_path, make_row: MakeRow) -> None:
    older = rows_table([make_row()], ["sky"]).drop_columns(["error", "policy_id"])
    storage.create(part_uri(str(tmp_path), DAY, "r1", 0), table_bytes(older))
    table = read_manifest(str(tmp_path))
    assert table.schema.names == [*ROW_SCHEMA.names, "run_date"]
    assert table["policy_id"].to_pylist() == [None]


def test_an_output_below_a_folder_with_an_equals_sign_is_no_partition(tmp_path, make_row: MakeRow) -> None:
    output = str(tmp_path / "env=prod" / "run_date=old" / "out")
    commit_part(output, DAY, "r1", 0, rows_table([make_row()], ["sky"]))
    assert read_manifest(output)["run_date"].to_pylist() == [DAY]


def test_pandas_reads_the_folder_as_it_is(tmp_path, make_row: MakeRow) -> None:
    for shard in range(3):
        commit_part(str(tmp_path), DAY, "r1", shard, rows_table([make_row(shard=shard)], ["sky", "road"]))
    frame = pd.read_parquet(tmp_path / "manifests")
    assert sorted(frame["shard"]) == [0, 1, 2]
    assert set(frame["run_date"].astype(str)) == {"2026-11-23"}
    assert frame["class_fractions"].tolist()[0].tolist() == [0.75, 0.25]


def test_an_unwritable_output_is_an_error_that_names_it(tmp_path, make_row: MakeRow) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        commit_part(str(tmp_path / "file"), DAY, "r1", 0, rows_table([make_row()], ["sky"]))


def test_a_link_that_leads_back_shows_no_part_twice_and_a_stranger_is_no_part(
    tmp_path, make_row: MakeRow
) -> None:
    output = str(tmp_path / "out")
    commit_part(output, date(2026, 11, 23), "r1", 0, rows_table([make_row()], ["a", "b"]))
    root = tmp_path / "out" / "manifests"
    (root / "loop").symlink_to("..")
    (root / "run_date=2026-11-23" / "loop").symlink_to("../..")
    pq.write_table(pa.table({"a": [1]}), root / "stranger.parquet")
    assert [part.key for part in list_parts(output)] == ["run_date=2026-11-23/r1-00000.parquet"]
    assert read_manifest(output).num_rows == 1
