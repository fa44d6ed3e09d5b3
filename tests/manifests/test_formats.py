"""Every format of `segpipe query` gives the same columns and rows, whatever the SQL makes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe import cli
from segpipe.manifests.plain_values import plain_values
from segpipe.manifests.query import format_table, query
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from tests.conftest import ROW_DEFAULTS


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("out"))
    rows = [Row(**ROW_DEFAULTS | {"image_uri": f"/bucket/{number}.jpg"}) for number in range(3)]
    commit_part(output, date(2026, 11, 23), "r", 0, rows_table(rows, ["sky", "road"]))
    return output


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("TIMESTAMP '2026-11-23 12:00:00'", "2026-11-23T12:00:00"),
        ("TIMESTAMP '2026-11-23 12:00:00.5'", "2026-11-23T12:00:00.500000"),
        ("TIMESTAMPTZ '2026-11-23 12:00:00+02'", "2026-11-23T10:00:00+00:00"),
        ("TIMESTAMP_NS '2026-11-23 12:00:00.123456789'", "2026-11-23T12:00:00.123456789"),
        ("TIMESTAMP_S '1969-12-31 23:59:59'", "1969-12-31T23:59:59"),
        ("'infinity'::TIMESTAMP", "infinity"),
        ("'-infinity'::TIMESTAMPTZ", "-infinity"),
        ("TIMESTAMP '290000-02-29 01:02:03'", "+290000-02-29T01:02:03"),
        ("DATE '2026-11-23'", "2026-11-23"),
        ("DATE '12000-02-29'", "+012000-02-29"),
        ("DATE '0044-03-15 (BC)'", "-000043-03-15"),  # there is no year 0 before Christ: 1 BC is year 0
        ("'infinity'::DATE", "infinity"),
        ("'-infinity'::DATE", "-infinity"),
        ("TIME '24:00:00'", "24:00:00"),
        ("TIME '01:02:03.000004'", "01:02:03.000004"),
        ("TIMETZ '12:00:00+05'", "12:00:00+05"),
        ("INTERVAL '14 months 3 days 4.5 seconds'", "P1Y2M3DT4.5S"),
        ("INTERVAL '-1 month'", "P-1M"),
        ("INTERVAL '0 days'", "P0D"),
        ("INTERVAL '100 hours'", "PT100H"),
        ("INTERVAL '-90 seconds'", "PT-1M-30S"),
        ("170141183460469231731687303715884105727::HUGEINT", 2**127 - 1),
        ("340282366920938463463374607431768211455::UHUGEINT", "340282366920938463463374607431768211455"),
        ("18446744073709551615::UBIGINT", 2**64 - 1),
        ("1.5::DECIMAL(38, 10)", 1.5),
        ("7::DECIMAL(38, 10)", 7),
        ("12345678901234567890.123456789::DECIMAL(38, 9)", "12345678901234567890.123456789"),
        ("'NaN'::DOUBLE", None),
        ("'-inf'::FLOAT", None),
        ("'\\xFF\\x00'::BLOB", "ff00"),
        ("'0b0a1e5c-0000-4000-8000-000000000000'::UUID", "0b0a1e5c-0000-4000-8000-000000000000"),
        ("'101'::BIT", "101"),
        ("MAP {'a': 1, 'b': NULL}", [["a", 1], ["b", None]]),
        ("{'a': 1, 'b': {'c': [1, NULL]}}", {"a": 1, "b": {"c": [1, None]}}),
        ("[{'at': 'infinity'::TIMESTAMP}, NULL]", [{"at": "infinity"}, None]),
        ("[[INTERVAL 1 DAY], NULL, []]", [["P1D"], None, []]),
        ("[1, 2]::INTEGER[2]", [1, 2]),
        ("'x'::ENUM('x', 'y')", "x"),
        ("union_value(n := 2)", "2"),
        ("'[1]'::JSON", "[1]"),
        ("NULL", None),
        ("true", True),
    ],
)
def test_a_value_is_the_same_in_json_and_csv(output: str, sql: str, expected: Any) -> None:
    table = query(output, f"SELECT {sql} AS value, 1 AS one")
    (record,) = json.loads(format_table(table, "json"))
    assert record == {"value": expected, "one": 1}
    header, (cell, one) = list(csv.reader(io.StringIO(format_table(table, "csv"))))
    assert (header, one) == (["value", "one"], "1")
    if isinstance(expected, list | dict):
        assert json.loads(cell) == expected
    else:
        assert cell == ("" if expected is None else str(expected))
    assert format_table(table, "table").splitlines()[0].split() == ["value", "one"]


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SELECT 1 AS a, 2 AS a, 3 AS a", ["a", "a_1", "a_2"]),
        ("SELECT 1 AS a, 2 AS a, 3 AS a_1", ["a", "a_2", "a_1"]),
        ("SELECT 1 AS a, '1'::BIT AS a", ["a", "a_1"]),
        ('SELECT 1 AS "x""y", \'1\'::BIT AS "x""y"', ['x"y', 'x"y_1']),
        (
            "SELECT l.model_id, r.model_id FROM labels l JOIN labels r USING (image_uri)",
            ["model_id", "model_id_1"],
        ),
    ],
)
def test_columns_of_one_name_are_told_apart_in_every_format(output: str, sql: str, names: list[str]) -> None:
    table = query(output, sql)
    assert table.column_names == names
    assert list(json.loads(format_table(table, "json"))[0]) == names
    assert next(csv.reader(io.StringIO(format_table(table, "csv")))) == names
    assert format_table(table, "table").splitlines()[0].split() == names


def test_rows_of_every_format_are_as_many_as_the_sql_gives(output: str) -> None:
    for sql, n in (
        ("SELECT NULL AS x FROM labels", 3),
        ("SELECT '' AS x FROM labels", 3),
        ("FROM labels", 3),
    ):
        table = query(output, sql)
        assert len(json.loads(format_table(table, "json"))) == n
        assert len(list(csv.reader(io.StringIO(format_table(table, "csv"))))) == n + 1
        assert len(format_table(table, "table").splitlines()) == n + 1


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-5, 5))))), st.data())
def test_a_slice_of_nested_values_is_that_slice(values: list[Any], data: st.DataObject) -> None:
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(values))] * 2)))
    records = [None if value is None else {"a": value, "b": value and value[:1]} for value in values]
    kind = pa.struct({"a": pa.list_(pa.int64()), "b": pa.list_(pa.int64())})
    assert plain_values(pa.array(records, kind)[start:end]) == records[start:end]
    assert plain_values(pa.array(values, pa.list_(pa.int64()))[start:end]) == values[start:end]


@given(st.dates(), st.times())
def test_near_times_are_as_python_writes_them(day: Any, time: Any) -> None:
    moment = datetime.combine(day, time)
    assert plain_values(pa.array([moment], pa.timestamp("us"))) == [moment.isoformat()]
    assert plain_values(pa.array([day], pa.date32())) == [day.isoformat()]
    assert plain_values(pa.array([time], pa.time64("us"))) == [time.isoformat()]


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql", ["-- how many\nSELECT count(*) AS n FROM labels", "--json\nSELECT 3 AS n", "/* x */ SELECT 3 AS n"]
)
@pytest.mark.parametrize("before", [[], ["--"]])
def test_sql_that_starts_with_a_comment_is_no_option(
    output: str, sql: str, before: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["query", "--format", "json", output, *before, sql]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 3}]


def test_an_option_that_there_is_not_is_still_wrong_usage(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["query", output, "SELECT 1", "--fromat", "json"]) == 2
    assert "--fromat" in capsys.readouterr().err


MANY = "SELECT range AS n FROM range(200000)"
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "query": lambda output: ["query", output, MANY, "--format", "csv"],
    "json": lambda output: ["query", output, MANY, "--format", "json"],
    "compact": lambda output: ["compact", output, "--json"],
    "verify": lambda output: ["verify", output],
    "help": lambda output: ["--help"],
    "version": lambda output: ["--version"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_wants_no_more_is_no_failure(output: str, command: str) -> None:
    """Standard output is a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "segpipe", *COMMANDS[command](output)],
            check=False,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert "Traceback" not in ended.stderr
    assert "Broken" not in ended.stderr
    assert ended.returncode == (3 if command == "verify" else 0)  # its rows are made up


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams_are_no_failure(output: str, closed: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m segpipe compact "$1" {closed}', sys.executable, output],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_result_that_cannot_be_written_is_one_line(output: str) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "segpipe", "query", output, MANY],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("segpipe: the result could not be printed")
    assert len(ended.stderr.splitlines()) == 1
