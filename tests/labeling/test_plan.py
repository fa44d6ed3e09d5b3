"""A plan holds what this model has not labelled yet (C7), cut into shards; making it writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.errors import RunError
from segpipe.labeling.plan import (
    PlanSummary,
    RunPlan,
    check_run_id,
    make_plan,
    new_run_id,
    pending_images,
    summarise_plan,
)
from segpipe.labeling.plan_files import PLAN_SCHEMA
from segpipe.labeling.run_record import freeze_plan, load_plan
from segpipe.manifests.schema import ROW_SCHEMA, Row, rows_table
from segpipe.manifests.store import commit_part
from tests.support.planned import planned_table

MODEL = "aaaaaaaaaaaa"
NOW = datetime(2026, 11, 23, 23, 30, tzinfo=UTC)
SETTINGS = LabelSettings(shard_images=2)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Five objects of 3 bytes, a.jpg to e.jpg."""
    root = str(tmp_path / "in")
    for name in "abcde":
        storage.put(f"{root}/{name}.jpg", b"123")
    return root


@pytest.fixture
def commit(source: str, output: str) -> Callable[..., None]:
    """(run_id, key, **values): commit a row for the image as it is now."""

    def put(run_id: str, key: str, **values: Any) -> None:
        uri = f"{source}/{key}"
        row = dict.fromkeys(ROW_SCHEMA.names) | {
            "image_uri": uri,
            "image_etag": storage.read(uri).etag,
            "mask_uri": f"{output}/masks/{MODEL}/{key}.png",
            "decision": "accepted",
            "reason": "confident",
            "model_id": MODEL,
            "run_id": run_id,
            "labeled_at": NOW,
        }
        commit_part(output, NOW.date(), run_id, 0, rows_table([Row(**row | values)], ["dark"]))

    return put


def plan(
    source: str, output: str, limit: int | None = None, model_id: str = MODEL, run_id: str = "run"
) -> RunPlan:
    return make_plan(source, output, model_id, "p1", SETTINGS, run_id, NOW, limit)


def keys(run_plan: RunPlan) -> list[str]:
    """The images' keys in the order of the plan."""
    return [uri.rpartition("/")[2] for uri in planned_table(run_plan.images)["image_uri"].to_pylist()]


def mask_keys(table: pa.Table) -> dict[str, str]:
    """Each image's mask key, by the image's key."""
    rows = table.to_pylist()
    return {row["image_uri"].rpartition("/")[2]: row["mask_key"] for row in rows}


def test_a_first_plan_holds_every_image_in_shards(source: str, output: str) -> None:
    table = planned_table(plan(source, output).images)
    assert table.schema.equals(PLAN_SCHEMA)
    assert table["shard"].to_pylist() == [0, 0, 1, 1, 2]
    uris = table["image_uri"].to_pylist()
    assert sorted(uris) == [f"{source}/{name}.jpg" for name in "abcde"]
    assert table["image_etag"].to_pylist() == [storage.read(uri).etag for uri in uris]
    assert mask_keys(table) == {f"{name}.jpg": f"{name}.jpg.png" for name in "abcde"}


def test_the_first_shard_is_a_uniform_sample_that_the_run_id_fixes(source: str, output: str) -> None:
    plans = [keys(plan(source, output, run_id=f"run-{number}")) for number in range(30)]
    assert [keys(plan(source, output, run_id=f"run-{number}")) for number in range(5)] == plans[:5]
    for first, second, *others in plans:
        assert first < second
        assert others == sorted(others)
    drawn = Counter(key for first, second, *_ in plans for key in (first, second))
    assert set(drawn) == {f"{name}.jpg" for name in "abcde"}
    assert max(abs(count - 12) for count in drawn.values()) <= 9  # of 30 plans, 2 of 5 images: 12 +- 2.7


def test_a_plan_of_one_shard_stays_in_the_order_of_the_keys(source: str, output: str) -> None:
    for number in range(5):
        run_plan = make_plan(source, output, MODEL, "p1", LabelSettings(shard_images=5), f"r{number}", NOW)
        assert keys(run_plan) == [f"{name}.jpg" for name in "abcde"]


def test_mask_keys_do_not_depend_on_the_sample(tmp_path: Path, output: str) -> None:
    source = str(tmp_path / "in")
    for key in ("a", "a.png/b", "c", "c.png/d", "e"):  # the mask of a would be the folder of the mask of b
        storage.put(f"{source}/{key}", key.encode())
    found = [
        mask_keys(planned_table(plan(source, output, run_id=f"r{number}").images)) for number in range(8)
    ]
    assert all(other == found[0] for other in found)
    assert found[0]["e"] == "e.png"
    assert len(set(found[0].values())) == 5


def test_planning_writes_nothing(source: str, output: str) -> None:
    plan(source, output)
    found = [item.uri for item in storage.list_objects(source.removesuffix("/in"))]
    assert all(uri.startswith(f"{source}/") for uri in found)


def test_labelled_images_are_left_out_for_their_model_only(source: str, output: str, commit) -> None:
    commit("r1", "b.jpg")
    commit("r2", "d.jpg", decision="failed", reason="unreadable", mask_uri=None)
    assert sorted(keys(plan(source, output))) == ["a.jpg", "c.jpg", "e.jpg"]
    assert sorted(keys(plan(source, output, model_id="bbbbbbbbbbbb"))) == [f"{name}.jpg" for name in "abcde"]


def test_storage_failures_are_retried_until_they_are_done(source: str, output: str, commit) -> None:
    commit("r1", "b.jpg", decision="failed", reason="storage", mask_uri=None)
    commit("r2", "c.jpg", decision="failed", reason="storage", mask_uri=None)
    commit("r3", "c.jpg")
    summary = summarise_plan(plan(source, output))
    assert (summary.images, summary.already_done, summary.retried) == (4, 1, 1)


def test_a_changed_image_is_planned_again_under_another_mask(source: str, output: str, commit) -> None:
    commit("r1", "b.jpg")
    storage.put(f"{source}/b.jpg", b"changed")
    again = plan(source, output)
    assert sorted(keys(again)) == [f"{name}.jpg" for name in "abcde"]
    mask_key = mask_keys(planned_table(again.images))["b.jpg"]
    assert mask_key.startswith("b.jpg~")
    assert mask_key != "b.jpg.png"


def test_an_image_of_another_source_never_takes_a_mask_that_is_there(
    tmp_path: Path, source: str, output: str, commit
) -> None:
    commit("r1", "b.jpg")
    other = str(tmp_path / "other")
    storage.put(f"{other}/b.jpg", b"another b")
    storage.put(f"{other}/new.jpg", b"new")
    first, second = planned_table(plan(other, output).images)["mask_key"].to_pylist()
    assert first.startswith("b.jpg~")
    assert second == "new.jpg.png"


def test_the_summary_counts_what_a_run_would_do(source: str, output: str, commit) -> None:
    commit("r1", "b.jpg")
    storage.put(f"{source}/notes.txt", b"text")
    assert summarise_plan(plan(source, output, limit=3)) == PlanSummary(
        source=source,
        output=output,
        model_id=MODEL,
        images=3,
        bytes=9,
        shards=2,
        already_done=1,
        retried=0,
        skipped={".txt": 1},
        policy_id=plan(source, output).policy_id,
    )


def test_an_empty_plan_is_a_plan(source: str, output: str, commit) -> None:
    for number, name in enumerate("abcde"):
        commit(f"r{number}", f"{name}.jpg")
    summary = summarise_plan(plan(source, output))
    assert (summary.images, summary.bytes, summary.shards, summary.already_done) == (0, 0, 0, 5)


def test_a_frozen_plan_comes_back_the_same(source: str, output: str) -> None:
    run_plan = plan(source, output)
    frozen, loaded = freeze_plan(run_plan, SETTINGS), load_plan(output, "run")
    assert loaded == frozen == replace(run_plan, images=frozen.images)
    assert planned_table(loaded.images).equals(planned_table(run_plan.images))
    assert load_plan(output, "other") is None


def test_a_plan_is_frozen_once(source: str, output: str) -> None:
    freeze_plan(plan(source, output), SETTINGS)
    with pytest.raises(RunError, match="run id run is in use"):
        freeze_plan(plan(source, output), SETTINGS)


def test_a_damaged_plan_is_named(output: str) -> None:
    storage.put(f"{output}/runs/run/plan.parquet", b"no parquet")
    with pytest.raises(RunError, match=r"runs/run/plan\.parquet is damaged"):
        load_plan(output, "run")


def test_pending_is_what_no_part_of_the_run_and_no_other_run_has_labelled(
    source: str, output: str, commit
) -> None:
    run_plan = plan(source, output)
    first, _, third, fourth, fifth = keys(run_plan)
    commit("run", first, shard=0)
    commit("r2", third, labeled_at=NOW + timedelta(minutes=1))
    pending = planned_table(pending_images(run_plan))
    assert pending.schema.equals(PLAN_SCHEMA)
    assert pending["image_uri"].to_pylist() == [f"{source}/{fourth}", f"{source}/{fifth}"]
    assert pending["shard"].to_pylist() == [1, 2]


def test_an_image_that_another_run_labelled_in_a_newer_version_is_left_to_the_next_plan(
    source: str, output: str, commit
) -> None:
    run_plan = plan(source, output)
    storage.put(f"{source}/c.jpg", b"changed")
    commit("r2", "c.jpg", labeled_at=NOW + timedelta(minutes=1))
    assert f"{source}/c.jpg" not in planned_table(pending_images(run_plan))["image_uri"].to_pylist()


def test_a_changed_image_stays_pending_although_its_old_version_is_labelled(
    source: str, output: str, commit
) -> None:
    commit("r1", "c.jpg", labeled_at=NOW - timedelta(days=1))
    storage.put(f"{source}/c.jpg", b"changed")
    assert pending_images(plan(source, output)).count == 5


def test_a_mask_that_another_run_has_written_meanwhile_is_not_overwritten(
    source: str, output: str, commit
) -> None:
    run_plan = plan(source, output)
    commit("r2", "a.jpg", image_uri="s3://other/a.jpg", mask_uri=f"{output}/masks/{MODEL}/a.jpg.png")
    found = mask_keys(planned_table(pending_images(run_plan)))
    assert found.pop("a.jpg").startswith("a.jpg.png~")
    assert found == {f"{name}.jpg": f"{name}.jpg.png" for name in "bcde"}


@pytest.mark.parametrize("run_id", ["a", "A-1_x.y", "0" * 64, "20261123T233000Z-76f4"])
def test_run_ids_that_can_name_a_run(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".a", "-a", "0" * 65, "a b", "a\n", "ü"])
def test_run_ids_that_could_leave_their_folder_are_refused(run_id: str) -> None:
    with pytest.raises(RunError, match="run id"):
        check_run_id(run_id)


def test_new_run_ids_sort_by_time_and_differ() -> None:
    assert check_run_id(new_run_id(NOW)).startswith("20261123T233000Z-")
    assert new_run_id(NOW) < new_run_id(NOW + timedelta(seconds=1))
    assert len({new_run_id(NOW) for _ in range(20)}) > 1
