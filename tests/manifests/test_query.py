"""What segpipe query answers: the views of C6 with values worked out by hand, and errors of one line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest

from segpipe.errors import NotFoundError, SegpipeError
from segpipe.manifests.query import format_table, query
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.manifests.views import VIEWS

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MakeRow = Callable[..., Row]
LOCAL = pytest.mark.parametrize("storage_root", ["local"], indirect=True)


@pytest.fixture
def output(storage_root: str, make_row: MakeRow) -> str:
    """Two runs: r1 labels a to d, r2 labels a again after it changed, and e."""
    output = f"{storage_root}/out"
    later = {"run_id": "r2", "labeled_at": NOON + timedelta(hours=1)}
    first = [
        make_row(image_uri="a", confidence=0.2, run_id="r1"),
        make_row(image_uri="b", confidence=0.4, run_id="r1", decision="review", reason="low_confidence"),
        make_row(image_uri="c", confidence=0.9, run_id="r1", audit=True),
        make_row(image_uri="d", confidence=None, run_id="r1", decision="failed", reason="unreadable"),
    ]
    second = [
        make_row(image_uri="a", image_etag="e2", decision="review", reason="low_confidence", **later),
        make_row(image_uri="e", confidence=0.7, **later),
    ]
    commit_part(output, NOON.date(), "r1", 0, rows_table(first, ["sky", "road"]))
    commit_part(output, NOON.date(), "r2", 0, rows_table(second, ["sky", "road"]))
    return output


@pytest.mark.parametrize(
    ("view", "images"),
    [
        ("labels", ["a", "a", "b", "c", "d", "e"]),
        ("latest", ["a", "b", "c", "d", "e"]),
        ("accepted", ["c", "e"]),
        ("review_queue", ["a", "b", "c"]),
        ("failures", ["d"]),
    ],
)
def test_views(output: str, view: str, images: list[str]) -> None:
    assert query(output, f"SELECT image_uri FROM {view} ORDER BY 1")["image_uri"].to_pylist() == images


def test_latest_is_the_newest_row_of_an_image(output: str) -> None:
    assert query(output, "SELECT image_etag FROM latest WHERE image_uri = 'a'")[0].to_pylist() == ["e2"]


def test_runs_has_one_row_per_run_with_its_counts(output: str) -> None:
    first, second = query(output, "FROM runs").to_pylist()
    assert first.pop("mean_confidence") == pytest.approx(0.5)
    assert second.pop("mean_confidence") == pytest.approx(0.6)
    counts = {"images": 4, "accepted": 2, "review": 1, "failed": 1}
    times = {"started_at": NOON, "finished_at": NOON}
    assert first == {"run_id": "r1", "model_id": "m", **times, **counts}
    assert (second["run_id"], second["images"], second["review"]) == ("r2", 2, 1)


def test_run_date_is_a_column(output: str) -> None:
    assert query(output, "SELECT DISTINCT run_date FROM labels")[0].to_pylist() == [date(2026, 11, 23)]


def test_an_output_without_rows_has_empty_views(tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run.json").write_text("{}")
    for view in VIEWS:
        assert query(str(tmp_path), f"FROM {view}").num_rows == 0


def test_an_output_that_does_not_exist_is_named(storage_root: str) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        query(f"{storage_root}/nowhere", "FROM labels")


@LOCAL
@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM labels", "nothing"),
        ("FROM masks", "views: labels, latest"),
        ("", "one SQL statement"),
        ("SELECT 1; SELECT 2", "one SQL statement"),
        ("DROP VIEW labels", "only reads"),
        ("CREATE TABLE t AS SELECT 1", "only reads"),
        ("COPY labels TO '/tmp/labels.csv'", "only reads"),
        ("SET enable_external_access = true", "only reads"),
        ("FROM read_csv('/etc/passwd')", "disabled"),
        ("FROM '/etc/passwd'", "not exist"),
        ("FROM NOON", "not exist"),
    ],
)
def test_wrong_or_writing_sql_is_one_clear_line(output: str, sql: str, said: str) -> None:
    with pytest.raises(SegpipeError, match=said) as refused:
        query(output, sql)
    assert "\n" not in str(refused.value)


@LOCAL
def test_reading_statements_other_than_select_work(output: str) -> None:
    assert "image_uri" in query(output, "DESCRIBE labels")["column_name"].to_pylist()
    assert query(output, "PIVOT labels ON decision USING count(*) GROUP BY model_id").num_rows == 1


MIXED = pa.table(
    {
        "name": pa.array(['é,"x"', None]),
        "score": pa.array([0.25, float("nan")]),
        "when": pa.array([NOON, None], pa.timestamp("us", "UTC")),
        "classes": pa.array([[0.5, None], [float("inf")]]),
        "day": pa.array([date(2026, 11, 23), None]),
        "total": pa.array([7, None], pa.decimal128(38, 0)),
    }
)


def test_json_is_a_list_of_records() -> None:
    assert json.loads(format_table(MIXED, "json")) == [
        {
            "name": 'é,"x"',
            "score": 0.25,
            "when": "2026-11-23T12:00:00+00:00",
            "classes": [0.5, None],
            "day": "2026-11-23",
            "total": 7,
        },
        {"name": None, "score": None, "when": None, "classes": [None], "day": None, "total": None},
    ]


def test_csv_has_a_header_and_one_line_per_row() -> None:
    header, first, second = list(csv.reader(io.StringIO(format_table(MIXED, "csv"))))
    assert header == ["name", "score", "when", "classes", "day", "total"]
    assert first == ['é,"x"', "0.25", "2026-11-23T12:00:00+00:00", "[0.5, null]", "2026-11-23", "7"]
    assert second == ["", "", "", "[null]", "", ""]


def test_table_shows_every_column_uncut_and_says_when_there_is_nothing() -> None:
    long = "s3://bucket/" + "x" * 200
    text = format_table(pa.table({"image_uri": [long, "b"], "n": [1, 22]}), "table")
    assert text.splitlines()[0].split() == ["image_uri", "n"]
    assert text.splitlines()[1].split() == [long, "1"]
    assert "no rows" in format_table(pa.table({"n": pa.array([], pa.int64())}), "table")


@LOCAL
def test_sums_of_counts_are_plain_numbers_in_json(output: str) -> None:
    text = format_table(query(output, "SELECT sum(accepted) AS n FROM runs"), "json")
    assert json.loads(text) == [{"n": 3}]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SegpipeError, match="table, json, csv"):
        format_table(MIXED, "xml")  # type: ignore[arg-type]


def test_querying_needs_no_torch() -> None:
    code = "import sys, segpipe.manifests.query; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
