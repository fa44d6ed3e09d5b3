"""What was labelled last is the newest also where a clock was set back, or ran ahead for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from segpipe import storage
from segpipe.config import VerifySettings
from segpipe.errors import StorageError
from segpipe.labeling.run import finish_run, label_run, label_source, start_run
from segpipe.labeling.stamps import first_stamp, rows_ahead
from segpipe.manifests.query import query
from segpipe.manifests.schema import rows_table
from segpipe.manifests.store import commit_part, read_manifest
from segpipe.manifests.verification import verify
from segpipe.manifests.views import open_views

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
AHEAD = timedelta(days=1)
JUST_AFTER = timedelta(microseconds=1)


@pytest.fixture
def commit(output: str, make_row) -> Callable[..., None]:
    """(run_id, *rows' values): commit a part under the day of NOW."""

    def put(run_id: str, *rows: dict) -> None:
        made = [make_row(run_id=run_id, **values) for values in rows]
        commit_part(output, NOW.date(), run_id, 0, rows_table(made, ["dark", "bright"]))

    return put


def test_the_first_stamp_is_now_unless_a_row_is_newer(output: str, commit) -> None:
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW
    commit("r1", {"labeled_at": NOW - JUST_AFTER}, {"labeled_at": NOW - AHEAD})
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW
    commit("r2", {"labeled_at": NOW})
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW + JUST_AFTER
    commit("r3", {"labeled_at": NOW + AHEAD, "model_id": "another"}, {"labeled_at": NOW})
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW + AHEAD + JUST_AFTER


def test_a_run_after_the_clock_was_set_back_is_the_latest_and_says_so_once(
    source, output, settings, make_labeler, fill, commit, caplog: pytest.LogCaptureFixture
) -> None:
    uris = fill(source, 10)
    newest = datetime.now(UTC) + AHEAD
    commit("r1", *({"image_uri": uri, "model_id": "old", "labeled_at": newest} for uri in uris))
    with caplog.at_level(logging.WARNING):
        label_source(source, output, make_labeler("bbbbbbbbbbbb"), settings, "r2")
    assert query(output, "SELECT DISTINCT run_id FROM latest")["run_id"].to_pylist() == ["r2"]
    stamps = read_manifest(output).filter(read_manifest(output)["run_id"].to_numpy() == "r2")["labeled_at"]
    assert set(stamps.to_pylist()) == {newest + JUST_AFTER}
    assert [line for line in caplog.messages if "rows are stamped just after" in line] == caplog.messages[:1]


def test_rows_of_a_right_clock_are_stamped_by_it(
    source, output, settings, make_labeler, fill, caplog
) -> None:
    fill(source, 3)
    before = datetime.now(UTC)
    with caplog.at_level(logging.WARNING):
        label_source(source, output, make_labeler(), settings)
    stamps = read_manifest(output)["labeled_at"].to_pylist()
    assert before <= min(stamps) <= max(stamps) <= datetime.now(UTC)
    assert caplog.messages == []


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in separate tasks"])
def test_an_image_that_changed_since_a_row_from_the_future_is_labelled(
    source, output, settings, make_labeler, fill, commit, picture, at_once: bool
) -> None:
    uris, labeler = fill(source, 2), make_labeler()
    future = {"model_id": labeler.model_id, "image_etag": "old", "labeled_at": datetime.now(UTC) + AHEAD}
    commit("r1", *({"image_uri": uri, "mask_uri": None} | future for uri in uris))
    storage.put(uris[0], picture(7, 9, 9))
    if at_once:
        assert label_source(source, output, labeler, settings, "r2").review == 2
    else:
        plan = start_run(source, output, labeler, settings, "r2")
        label_run(plan, labeler, settings)
        assert finish_run(plan).review == 2
    assert set(query(output, "SELECT run_id FROM latest")["run_id"].to_pylist()) == {"r2"}


FAR = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize("far", [FAR, datetime(2300, 1, 1, tzinfo=UTC)])
def test_a_row_of_a_year_that_no_clock_can_have_told_stops_no_run_and_is_said(
    source, output, settings, make_labeler, fill, commit, picture, caplog, far: datetime
) -> None:
    uris, labeler = fill(source, 3), make_labeler()
    old = {"model_id": labeler.model_id, "image_etag": "old", "labeled_at": far, "mask_uri": None}
    commit("r1", *({"image_uri": uri} | old for uri in uris))
    before = datetime.now(UTC)
    with caplog.at_level(logging.WARNING):
        assert label_source(source, output, labeler, settings, "r2").review == 3
        storage.put(uris[0], picture(7, 9, 9))
        assert label_source(source, output, labeler, settings, "r3").review == 1
    rows = read_manifest(output).filter(read_manifest(output)["run_id"].to_numpy() != "r1")
    stamps = rows["labeled_at"].to_pylist()
    assert before <= min(stamps) <= max(stamps) <= datetime.now(UTC)
    (line,) = set(caplog.messages)
    assert line.startswith(f"3 rows under {output} are stamped more than a year from now")
    assert "segpipe verify names them; remove their parts and label again" in line


def test_a_stamp_is_followed_for_a_year_at_most(output: str, commit) -> None:
    commit("r1", {"labeled_at": NOW + timedelta(days=365)})
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW + timedelta(days=365) + JUST_AFTER
    commit("r2", {"labeled_at": NOW + timedelta(days=366)})
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW + timedelta(days=365) + JUST_AFTER


def test_a_time_that_python_cannot_tell_is_damage_that_is_named(output: str, make_row, commit) -> None:
    commit("r1", {})
    table = rows_table([make_row(run_id="r2")], ["dark", "bright"])
    place = table.schema.get_field_index("labeled_at")
    beyond = pa.array([40_000 * 366 * 86_400 * 10**6], pa.timestamp("us", "UTC"))  # the year 42,000 or so
    commit_part(output, NOW.date(), "r2", 0, table.set_column(place, table.schema.field(place), beyond))
    with (
        pytest.raises(StorageError, match=r"r2-00000\.parquet is damaged \(ValueError\)"),
        open_views(output) as views,
    ):
        views.sql("FROM latest").to_arrow_table().to_pylist()
    assert first_stamp(rows_ahead(output, NOW), NOW) == NOW + JUST_AFTER
    result = verify(output, VerifySettings())
    assert [one.what for one in result.examples if "stamped" in one.what] == [
        "is stamped more than a year from now: no clock is so wrong"
    ]


@pytest.mark.parametrize("view", ["latest", "accepted", "review_queue", "reviewed", "failures"])
def test_whoever_asks_for_the_newest_rows_is_told_that_rows_far_ahead_hide_them(
    output: str, commit, view: str, caplog: pytest.LogCaptureFixture
) -> None:
    commit("r1", {"labeled_at": FAR}, {"image_uri": "b", "labeled_at": NOW})
    with caplog.at_level(logging.WARNING):
        assert query(output, "SELECT count(*) AS n FROM labels")["n"].to_pylist() == [2]
        assert caplog.messages == []
        query(output, f"SELECT count(*) FROM {view}")
        query(output, f"FROM {view}")
    (line,) = caplog.messages
    assert line.startswith(f"1 rows under {output} are stamped more than a year from now")
    assert "segpipe verify names them" in line


def test_rows_of_less_than_a_year_ahead_hide_nothing(output: str, commit, caplog) -> None:
    commit("r1", {"labeled_at": datetime.now(UTC) + timedelta(days=360)})
    with caplog.at_level(logging.WARNING):
        assert query(output, "FROM latest").num_rows == 1
    assert caplog.messages == []
