"""A plan that exceeds memory lies in several files and is read a piece at a time; nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segpipe import storage
from segpipe.config import LabelSettings, VerifySettings
from segpipe.errors import RunError
from segpipe.labeling import plan_files, run_record
from segpipe.labeling.plan import RunPlan, finished_parts, pending_images
from segpipe.labeling.plan_files import PLAN_SCHEMA
from segpipe.labeling.run import finish_run, label_run, label_source, start_run
from segpipe.labeling.run_record import delete_run, freeze_plan, load_plan
from segpipe.manifests.query import query
from segpipe.manifests.run_files import FURTHER, PLAN_HEADER, PlanFile, plan_uri, read_plan_header
from segpipe.manifests.verification import verify
from tests.support.alternative_names import alternative_key
from tests.support.planned import planned_table

SETTINGS = LabelSettings(shard_images=5, batch_images=4, fetch_threads=2)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some 4 images, read 3 at a time, so that neither ends where a shard does."""
    monkeypatch.setattr(run_record, "FILE_IMAGES", 4)
    monkeypatch.setattr(plan_files, "BATCH_IMAGES", 3)
    monkeypatch.setattr("segpipe.labeling.plan.BATCH_IMAGES", 3)


@pytest.fixture
def plan(source: str, output: str, make_labeler: Any, fill: Any) -> RunPlan:
    """Of 14 images, frozen."""
    fill(source, 14)
    return start_run(source, output, make_labeler(), SETTINGS, "r1")


def plan_keys(output: str) -> list[str]:
    found = storage.list_objects(f"{output}/runs/r1")
    return [item.key for item in found if item.key.endswith(".parquet")]


def test_a_plan_is_frozen_in_files_and_comes_back_whole(plan: RunPlan, output: str, source: str) -> None:
    loaded = load_plan(output, "r1")
    assert loaded == plan
    assert [file.images for file in loaded.images.files] == [6, 6, 2]
    assert len(plan_keys(output)) == 3
    tables = list(loaded.images.tables())
    assert max(table.num_rows for table in tables) == 3
    rows = pa.concat_tables(tables)
    assert rows.schema.equals(PLAN_SCHEMA)
    assert rows["shard"].to_pylist() == [0] * 5 + [1] * 5 + [2] * 4
    assert sorted(rows["image_uri"].to_pylist()) == [item.uri for item in storage.list_objects(source)]


def test_a_run_of_a_large_plan_labels_each_image_once(
    plan: RunPlan, output: str, source: str, make_labeler: Any
) -> None:
    summary = label_source(source, output, make_labeler(), SETTINGS, "r1")
    assert (summary.planned, summary.review, summary.labelled_elsewhere) == (14, 14, 0)
    labelled = query(output, "SELECT image_uri, shard FROM labels ORDER BY image_uri").to_pylist()
    planned = planned_table(plan.images).sort_by("image_uri")
    assert labelled == planned.select(["image_uri", "shard"]).to_pylist()
    found = verify(output, VerifySettings())
    assert (found.findings, found.parts) == ({}, 3)


def test_a_resume_of_a_large_plan_leaves_out_what_is_done(
    plan: RunPlan, output: str, source: str, make_labeler: Any
) -> None:
    planned = planned_table(plan.images)
    label_run(plan, make_labeler(), SETTINGS)
    parts = dict(finished_parts(plan))
    other = planned["image_uri"][7].as_py()
    for shard in (1, 2):
        storage.delete(parts[shard])
    pending = planned_table(pending_images(plan))
    assert pending.equals(planned.slice(5))
    shifted = storage.join(source, "other")
    storage.put(storage.join(shifted, other.removeprefix(f"{source}/")), storage.read_bytes(other))
    label_source(shifted, output, make_labeler(), SETTINGS, "r2")  # its mask takes the name of a planned one
    renamed = planned_table(pending_images(plan))
    keys, new_keys = (table["mask_key"].to_pylist() for table in (pending, renamed))
    assert renamed.drop_columns("mask_key").equals(pending.drop_columns("mask_key"))
    assert [old == new for old, new in zip(keys, new_keys, strict=True)] == [True] * 2 + [False] + [True] * 6
    assert new_keys[2] == alternative_key(keys[2], other, planned["image_etag"][7].as_py())
    label_source(source, output, make_labeler(), SETTINGS, "r3")  # labels what r1 has left
    assert pending_images(plan).count == 0
    assert finish_run(plan).labelled_elsewhere == 9


def test_a_plan_without_one_of_its_files_is_damaged(plan: RunPlan, output: str) -> None:
    lost = plan.images.files[1].uri
    content = storage.read_bytes(lost)
    storage.delete(lost)
    with pytest.raises(RunError, match=rf"{lost} is damaged \(NotFoundError\): restore it, or start a run"):
        load_plan(output, "r1")
    assert set(verify(output, VerifySettings()).findings) == {"run"}
    storage.put(lost, storage.read_bytes(plan.images.files[2].uri))
    with pytest.raises(RunError, match=rf"{lost} is damaged"):
        load_plan(output, "r1")
    storage.put(lost, content)
    assert load_plan(output, "r1") == plan


def test_a_plan_that_comes_too_late_leaves_no_files(plan: RunPlan, output: str) -> None:
    before = plan_keys(output)
    with pytest.raises(RunError, match="run id r1 is in use"):
        freeze_plan(plan, SETTINGS)
    assert plan_keys(output) == before


def test_a_removed_plan_is_gone_with_all_its_files(plan: RunPlan, output: str) -> None:
    storage.put(f"{output}/runs/r1/plan-of-mine.parquet", b"a person's")
    delete_run(plan)
    assert plan_keys(output) == ["plan-of-mine.parquet"]


def test_a_plan_that_names_the_files_of_others_takes_none_of_them_away(plan: RunPlan, output: str) -> None:
    others = f"{output}/runs/r2/plan-01234567-00001.parquet"
    named = [f"{output}/runs/r1/../r2/plan-01234567-00001.parquet", f"{output}/runs/r1/plan-of-mine.parquet"]
    for uri in (others, named[1]):
        storage.put(uri, b"another's")
    files = (plan.images.files[0], *(PlanFile(uri, 1) for uri in named))
    delete_run(replace(plan, images=plan_files.PlannedImages(files)))
    assert storage.exists(others)
    assert storage.exists(named[1])


def test_a_plan_of_an_earlier_version_in_one_large_file_goes_on_being_read(
    plan: RunPlan, output: str, source: str, make_labeler: Any
) -> None:
    planned = planned_table(plan.images)
    delete_run(plan)
    frozen = freeze_plan(plan_of_one_file(plan, planned), SETTINGS)
    header, _ = read_plan_header(output, "r1") or ({}, ())
    metadata = pq.read_schema(plan_uri(output, "r1")).metadata
    assert FURTHER not in header
    assert FURTHER.encode() not in metadata[PLAN_HEADER]  # or that version would not read ours
    assert load_plan(output, "r1") == frozen
    assert label_source(source, output, make_labeler(), SETTINGS, "r1").review == 14


def plan_of_one_file(plan: RunPlan, planned: pa.Table) -> RunPlan:
    """As `plan`, to be frozen with this table in one file."""
    run_record.FILE_IMAGES = 1_000_000  # the fixture puts it back
    return replace(plan, images=plan_files.keep_images([planned]))
