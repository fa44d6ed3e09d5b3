"""A whole run on every kind of storage: each image has one row and one mask, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from silent_claims import let_the_lease_run_out

from segpipe import storage
from segpipe.confidence.drift import Drift, detect_drift
from segpipe.confidence.policy import Policy
from segpipe.config import LabelSettings
from segpipe.errors import NotFoundError, RunError, StorageError
from segpipe.images import decode_image, decode_mask
from segpipe.labeling import ledger as ledger_module
from segpipe.labeling.plan import make_plan
from segpipe.labeling.run import finish_run, label_run, label_source, start_run
from segpipe.labeling.run_record import freeze_plan
from segpipe.manifests.parts import list_parts
from segpipe.manifests.query import query
from segpipe.manifests.store import read_manifest
from tests.support.planned import planned_table

MODEL = "aaaaaaaaaaaa"
LOCAL = pytest.mark.parametrize("storage_root", ["local"], indirect=True)  # storage plays no part in these


class KilledError(BaseException):
    """Ends a run as a kill would: nothing in between may catch it."""


@pytest.fixture
def source(storage_root: str) -> str:
    return storage.normalise(f"{storage_root}/in")


@pytest.fixture
def output(storage_root: str) -> str:
    return storage.normalise(f"{storage_root}/out")


def rows(output: str) -> list[dict]:
    return sorted(read_manifest(output).to_pylist(), key=lambda row: row["image_uri"])


def assert_each_once(output: str, uris: list[str]) -> None:
    """One row per image, and behind every row a mask that hashes to what the row says."""
    found = rows(output)
    assert [row["image_uri"] for row in found] == sorted(uris)
    assert_masks(found)


def assert_masks(found: list[dict]) -> None:
    masks = [row["mask_uri"] for row in found if row["mask_uri"]]
    assert len(set(masks)) == len(masks)
    for row in found:
        if row["decision"] != "failed":
            data = storage.read_bytes(row["mask_uri"])
            assert hashlib.sha256(data).hexdigest() == row["mask_sha256"]


# --- a plain run --------------------------------------------------------------------------------------------


def test_a_run_labels_every_image(source, output, settings, make_labeler, make_policy, fill) -> None:
    uris = fill(source, 10)
    listed = {found.uri: found for found in storage.list_objects(source)}
    summary = label_source(source, output, make_labeler(policy=make_policy(0.7)), settings, "r1")
    assert_each_once(output, uris)
    for row in rows(output):
        pixels = decode_image(storage.read_bytes(row["image_uri"]))
        score = pixels.mean() / 255
        key = row["image_uri"].removeprefix(f"{source}/")
        assert row["mask_uri"] == f"{output}/masks/{MODEL}/{key}.png"
        np.testing.assert_array_equal(
            decode_mask(storage.read_bytes(row["mask_uri"])), pixels.mean(axis=2) > 127
        )
        assert row["discriminator_score"] == pytest.approx(score)
        assert row["decision"] == ("accepted" if score >= 0.7 else "review")
        assert (row["image_etag"], row["image_bytes"]) == (
            listed[row["image_uri"]].etag,
            listed[row["image_uri"]].size,
        )
        assert (row["run_id"], row["model_id"], row["policy_id"]) == ("r1", MODEL, "p1")
    decisions = Counter(row["decision"] for row in rows(output))
    assert (summary.planned, summary.accepted, summary.review, summary.failed) == (
        10,
        decisions["accepted"],
        decisions["review"],
        0,
    )
    assert 0 < decisions["accepted"] < 10


def test_a_run_leaves_what_the_contract_says_and_nothing_else(
    source, output, settings, make_labeler, fill
) -> None:
    fill(source, 10)
    summary = label_source(source, output, make_labeler(), settings, "r1")
    day = f"run_date={rows(output)[0]['run_date'].isoformat()}"
    others = [item.key for item in storage.list_objects(output) if not item.key.startswith(f"masks/{MODEL}/")]
    assert others == [
        f"claims/{MODEL}/00000001.json",
        *(f"manifests/{day}/r1-{shard:05d}.parquet" for shard in range(3)),
        "runs/r1/plan.parquet",
        "runs/r1/run.json",
    ]
    record = json.loads(storage.read_bytes(f"{output}/runs/r1/run.json"))
    assert record["totals"]["review"] == summary.review == 10
    assert record["settings"]["shard_images"] == 4
    assert record["versions"]["pyarrow"]


def test_a_second_run_over_an_unchanged_bucket_plans_nothing(
    source, output, settings, make_labeler, fill
) -> None:
    fill(source, 5)
    label_source(source, output, make_labeler(), settings)
    parts = list_parts(output)
    summary = label_source(source, output, make_labeler(), settings)
    assert (summary.planned, summary.already_done, summary.images_per_second) == (0, 5, 0)
    assert list_parts(output) == parts


def test_new_and_changed_images_are_labelled_and_old_masks_stay(
    source, output, settings, make_labeler, fill, picture
) -> None:
    uris = fill(source, 5)
    label_source(source, output, make_labeler(), settings)
    storage.put(uris[1], picture(1, 9, 9))
    storage.put(f"{source}/new.png", picture(2))
    summary = label_source(source, output, make_labeler(), settings)
    assert (summary.planned, summary.already_done) == (2, 4)
    found = rows(output)
    assert Counter(row["image_uri"] for row in found) == Counter([*uris, f"{source}/new.png", uris[1]])
    assert_masks(found)
    assert query(output, f"SELECT image_width FROM latest WHERE image_uri = '{uris[1]}'")[0].to_pylist() == [
        9
    ]


@LOCAL
def test_another_model_labels_everything_again_in_its_own_folder(
    source, output, settings, make_labeler, fill
) -> None:
    fill(source, 3)
    label_source(source, output, make_labeler(), settings)
    assert label_source(source, output, make_labeler("bbbbbbbbbbbb"), settings).planned == 3
    assert len(list(storage.list_objects(f"{output}/masks/bbbbbbbbbbbb"))) == 3


@LOCAL
def test_an_output_inside_the_source_is_not_labelled(source, settings, make_labeler, fill) -> None:
    uris, output = fill(source, 3), f"{source}/labels"
    for _ in range(2):
        label_source(source, output, make_labeler(), settings)
    assert_each_once(output, uris)


@LOCAL
def test_a_limit_labels_some_and_the_next_run_the_rest(source, output, settings, make_labeler, fill) -> None:
    uris = fill(source, 6)
    assert label_source(source, output, make_labeler(), settings, limit=2).planned == 2
    assert label_source(source, output, make_labeler(), settings).planned == 4
    assert_each_once(output, uris)


def test_without_images_or_source_nothing_starts(tmp_path, settings, make_labeler) -> None:
    storage.put(str(tmp_path / "in" / "readme.txt"), b"text")
    with pytest.raises(RunError, match=r"no images under .*1 \.txt"):
        label_source(str(tmp_path / "in"), str(tmp_path / "out"), make_labeler(), settings)
    with pytest.raises(NotFoundError, match="nowhere"):
        label_source(str(tmp_path / "nowhere"), str(tmp_path / "unmade"), make_labeler(), settings)
    with pytest.raises(RunError, match="SOURCE and OUTPUT are both"):
        label_source(str(tmp_path / "in"), str(tmp_path / "in"), make_labeler(), settings)
    assert not (tmp_path / "unmade").exists()
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["readme.txt"]


def test_an_output_that_cannot_be_written_stops_the_run(tmp_path, settings, make_labeler, fill) -> None:
    fill(str(tmp_path / "in"), 1)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StorageError, match="out"):
        label_source(str(tmp_path / "in"), str(tmp_path / "out"), make_labeler(), settings)


# --- bad and moving input -----------------------------------------------------------------------------------


@LOCAL
def test_broken_images_become_rows_with_their_reason(
    source, output, settings, make_labeler, fill, picture
) -> None:
    uris = fill(source, 4)
    broken = {"empty.png": b"", "page.jpg": b"<html>", "cut.png": picture(9, 400, 400)[:300]}
    for key, data in broken.items():
        storage.put(f"{source}/{key}", data)
    summary = label_source(source, output, make_labeler(), settings)
    assert (summary.review, summary.failed) == (4, 3)
    assert summary.reasons == {"no_policy": 4, "unreadable": 3}
    failures = query(output, "SELECT image_uri, reason FROM failures ORDER BY 1").to_pylist()
    assert [row["image_uri"] for row in failures] == sorted(f"{source}/{key}" for key in broken)
    assert_each_once(output, [*uris, *(f"{source}/{key}" for key in broken)])
    assert label_source(source, output, make_labeler(), settings).planned == 0


def test_an_image_replaced_after_planning_is_labelled_as_what_was_read(
    source, output, settings, make_labeler, fill, picture
) -> None:
    uris, labeler = fill(source, 3), make_labeler()
    plan = start_run(source, output, labeler, settings, "r1")
    storage.put(uris[1], picture(40, 7, 8))
    label_run(plan, labeler, settings)
    finish_run(plan)
    row = next(row for row in rows(output) if row["image_uri"] == uris[1])
    blob = storage.read(uris[1])
    assert (row["image_etag"], row["image_bytes"]) == (blob.etag, len(blob.data))
    assert (row["image_width"], row["image_height"]) == (8, 7)
    assert label_source(source, output, labeler, settings).planned == 0
    assert_each_once(output, uris)


def test_an_image_deleted_after_planning_fails_and_is_retried_when_it_is_back(
    source, output, settings, make_labeler, fill
) -> None:
    uris, labeler = fill(source, 3), make_labeler()
    data = storage.read_bytes(uris[1])
    plan = start_run(source, output, labeler, settings, "r1")
    storage.delete(uris[1])
    label_run(plan, labeler, settings)
    summary = finish_run(plan)
    assert (summary.review, summary.failed, summary.reasons["storage"]) == (2, 1, 1)
    storage.put(uris[1], data)
    again = label_source(source, output, labeler, settings)
    assert (again.planned, again.review) == (1, 1)
    assert len(rows(output)) == 4
    assert query(output, "FROM failures").num_rows == 0
    assert query(output, "FROM review_queue").num_rows == 3


# --- resume -------------------------------------------------------------------------------------------------


def kill_in_batch(number: int) -> Callable[[list[np.ndarray]], None]:
    batches = iter(range(1000))

    def before(batch: list[np.ndarray]) -> None:
        if next(batches) == number:
            raise KilledError

    return before


def kill_at_picture(number: int) -> Callable[[list[np.ndarray]], None]:
    """As soon as this picture of `fill` is in a batch, whichever batch is computed first."""

    def before(batch: list[np.ndarray]) -> None:
        if any(image.max() == 255 - 5 * number for image in batch):
            raise KilledError

    return before


def test_a_run_killed_in_the_middle_of_a_shard_resumes_where_it_was(
    source, output, settings, make_labeler, fill
) -> None:
    uris = fill(source, 14)
    with pytest.raises(KilledError):
        label_source(source, output, make_labeler(before=kill_in_batch(3)), settings, "r1")
    committed = {row["image_uri"] for row in rows(output)}
    assert len(committed) < 14
    labeler = make_labeler()
    summary = label_source(source, output, labeler, settings, "r1")
    assert len(labeler.seen) == 14 - len(committed)
    assert (summary.planned, summary.review) == (14, 14)
    assert_each_once(output, uris)


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_run_killed_at_a_commit_resumes_without_a_gap_or_a_double(
    source, output, settings, make_labeler, fill, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    uris, commit = fill(source, 10), ledger_module.commit_part

    def killed(out, run_date, run_id, shard, table) -> bool:
        if shard == 1 and step == "before":
            raise KilledError
        done = commit(out, run_date, run_id, shard, table)
        if shard == 1:
            raise KilledError
        return done

    monkeypatch.setattr(ledger_module, "commit_part", killed)
    with pytest.raises(KilledError):
        label_source(source, output, make_labeler(), settings, "r1")
    assert len(rows(output)) == (4 if step == "before" else 8)
    monkeypatch.undo()
    assert label_source(source, output, make_labeler(), settings, "r1").review == 10
    assert_each_once(output, uris)


def test_what_a_dead_run_left_is_labelled_by_the_next_and_its_resume_adds_nothing(
    source, output, settings, make_labeler, fill, picture
) -> None:
    uris = fill(source, 10)
    with pytest.raises(KilledError):
        label_source(source, output, make_labeler(before=kill_in_batch(2)), settings, "r1")
    first = len(rows(output))
    left = set(uris) - {row["image_uri"] for row in rows(output)}
    storage.put(min(left), picture(3, 9, 9))
    assert label_source(source, output, make_labeler(), settings, "r2").planned == 10 - first
    summary = label_source(source, output, make_labeler(), settings, "r1")
    assert (summary.planned, summary.review, summary.labelled_elsewhere) == (10, first, 10 - first)
    assert_each_once(output, uris)


@LOCAL
def test_a_run_over_midnight_lies_under_the_day_of_its_plan_and_its_resume_finds_it(
    source, output, settings, make_labeler, fill
) -> None:
    uris = fill(source, 10)
    plan = make_plan(
        source, output, MODEL, None, settings, "r1", datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC)
    )
    freeze_plan(plan, settings)
    with pytest.raises(KilledError):
        label_run(plan, make_labeler(before=kill_in_batch(3)), settings)
    summary = label_source(source, output, make_labeler(), settings, "r1")
    assert (summary.planned, summary.review) == (10, 10)
    assert {part.key.partition("/")[0] for part in list_parts(output)} == {"run_date=2026-01-01"}
    assert min(row["labeled_at"] for row in rows(output)) > datetime(2026, 1, 2, tzinfo=UTC)
    assert label_source(source, output, make_labeler(), settings, "r2").planned == 0
    assert_each_once(output, uris)


@LOCAL
def test_a_plan_made_before_another_run_labels_only_what_that_left(
    source, output, settings, make_labeler, fill
) -> None:
    uris, labeler = fill(source, 10), make_labeler()
    early = start_run(source, output, labeler, settings, "early")
    label_source(source, output, labeler, settings, limit=6)
    label_run(early, labeler, settings)
    assert finish_run(early).labelled_elsewhere == 6
    assert len(labeler.seen) == 10
    assert_each_once(output, uris)


@LOCAL
def test_a_finished_run_can_be_repeated_and_says_the_same(
    source, output, settings, make_labeler, fill
) -> None:
    fill(source, 5)
    first = label_source(source, output, make_labeler(), settings, "r1")
    again = label_source(source, output, make_labeler(), settings, "r1")
    assert again == first
    assert first.seconds > 0
    assert first.images_per_second == pytest.approx(5 / first.seconds)
    assert list(first.legs) == ["read", "decode", "infer", "encode", "write", "device", "wait"]


def test_a_run_is_not_summed_up_while_images_are_pending(tmp_path, settings, make_labeler, fill) -> None:
    fill(str(tmp_path / "in"), 3)
    plan = start_run(str(tmp_path / "in"), str(tmp_path / "out"), make_labeler(), settings, "r1")
    with pytest.raises(RunError, match="3 images to go"):
        finish_run(plan)


def test_a_resume_with_another_source_model_or_policy_is_refused(
    tmp_path, settings, make_labeler, make_policy, fill
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    fill(source, 3)
    plan = start_run(source, output, make_labeler(), settings, "r1")
    with pytest.raises(RunError, match="other-source"):
        label_source(str(tmp_path / "other-source"), output, make_labeler(), settings, "r1")
    with pytest.raises(RunError, match="bbbbbbbbbbbb"):
        label_source(source, output, make_labeler("bbbbbbbbbbbb"), settings, "r1")
    with pytest.raises(RunError, match="p1"):
        label_run(plan, make_labeler(policy=make_policy(0.5)), settings)
    with pytest.raises(RunError, match="run id"):
        label_source(source, output, make_labeler(), settings, "../r1")
    assert rows(output) == []


def test_a_run_that_lost_its_claim_commits_nothing_more(source, output, settings, make_labeler, fill) -> None:
    fill(source, 10)
    taken_over = iter([True])

    def take_over(batch: list[np.ndarray]) -> None:
        if next(taken_over, False):
            storage.put(f"{output}/claims/{MODEL}/00000002.json", b"{}")

    with pytest.raises(RunError, match="lost its claim"):
        label_source(source, output, make_labeler(before=take_over), settings, "r1")
    assert rows(output) == []


# --- drift --------------------------------------------------------------------------------------------------

SHARDS_OF_12 = LabelSettings(shard_images=12, batch_images=4, fetch_threads=3, claim_seconds=20)


@pytest.fixture
def calm(make_policy) -> Policy:
    """Accepts the brighter half of 30 pictures; its calibration scores are spread as theirs."""
    return make_policy(0.5, score_quantiles=tuple(np.linspace(0.3, 0.75, 101).tolist()))


@pytest.fixture
def alarming(make_policy) -> Policy:
    """Accepts as `calm` does, but its calibration scores all lie above those of the pictures."""
    return make_policy(0.5, score_quantiles=tuple(np.linspace(2, 3, 101).tolist()))


@LOCAL
def test_a_drifted_run_goes_to_review_from_its_first_part_on(
    source, output, make_labeler, alarming, fill, caplog: pytest.LogCaptureFixture
) -> None:
    fill(source, 30)
    storage.put(f"{source}/broken.png", b"")
    summary = label_source(source, output, make_labeler(policy=alarming), SHARDS_OF_12, "r1")
    assert summary.reasons == {"drift": 30, "unreadable": 1}
    assert (summary.accepted, summary.review, summary.failed) == (0, 30, 1)
    assert_masks(rows(output))
    tested = [row["discriminator_score"] for row in rows(output) if row["shard"] == 0]
    finite = [score for score in tested if score is not None]
    assert summary.drift == detect_drift(finite, alarming, 0.0001)
    assert summary.drift.alarm
    record = json.loads(storage.read_bytes(f"{output}/runs/r1/run.json"))
    assert record["totals"]["drift"] == asdict(summary.drift)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    said = warning.getMessage()
    assert f"p = {summary.drift.p_value:.2g}" in said
    assert "alarm at 0.0001" in said
    assert "look at the images, recalibrate or retrain" in said


@LOCAL
def test_a_run_like_the_calibration_images_is_routed_by_its_scores(
    source, output, make_labeler, calm, fill
) -> None:
    fill(source, 30)
    summary = label_source(source, output, make_labeler(policy=calm), SHARDS_OF_12)
    assert summary.reasons.keys() == {"confident", "low_confidence"}
    assert summary.drift.p_value > 0.0001
    assert (summary.drift.alarm, summary.drift.n_scores) == (False, 12)


@LOCAL
def test_a_drifted_run_is_only_warned_of_when_told_so(
    source, output, make_labeler, alarming, fill, caplog: pytest.LogCaptureFixture
) -> None:
    fill(source, 30)
    settings = SHARDS_OF_12.model_copy(update={"drift_warn_only": True})
    summary = label_source(source, output, make_labeler(policy=alarming), settings)
    assert summary.drift.alarm
    assert summary.reasons.keys() == {"confident", "low_confidence"}
    assert "masks are accepted as usual" in caplog.text


@LOCAL
def test_too_few_images_are_not_tested_for_drift(
    source, output, make_labeler, alarming, fill, caplog: pytest.LogCaptureFixture
) -> None:
    fill(source, 9)
    caplog.set_level(logging.INFO)
    summary = label_source(source, output, make_labeler(policy=alarming), SHARDS_OF_12)
    assert summary.drift == Drift(None, None, 9, False, 0.0001)
    assert summary.reasons["confident"]
    assert "not tested for drift: 9 scores are too few" in caplog.text


@LOCAL
@pytest.mark.parametrize("threshold", [None, "no policy"])
def test_where_nothing_is_accepted_there_is_no_drift_gate(
    source, output, make_labeler, make_policy, alarming, fill, threshold: str | None
) -> None:
    fill(source, 12)
    policy = replace(alarming, threshold=None) if threshold is None else None
    summary = label_source(source, output, make_labeler(policy=policy), SHARDS_OF_12)
    assert summary.drift is None
    assert set(summary.reasons) <= {"low_confidence", "no_policy"}


@LOCAL
@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_resumed_run_keeps_the_verdict_of_its_first_part(
    source, output, make_labeler, alarming, fill, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    fill(source, 30)
    whole = label_source(source, f"{output}-whole", make_labeler(policy=alarming), SHARDS_OF_12, "r1")
    commit = ledger_module.commit_part

    def killed(out, run_date, run_id, shard, table) -> bool:
        if shard == killed_at:
            raise KilledError
        return commit(out, run_date, run_id, shard, table)

    monkeypatch.setattr(ledger_module, "commit_part", killed)
    with pytest.raises(KilledError):
        label_source(source, output, make_labeler(policy=alarming), SHARDS_OF_12, "r1")
    monkeypatch.undo()
    summary = label_source(source, output, make_labeler(policy=alarming), SHARDS_OF_12, "r1")
    assert summary.drift == whole.drift
    assert summary.reasons == {"drift": 30}


@LOCAL
def test_a_verdict_does_not_change_with_the_settings_of_a_resume(
    source, output, make_labeler, calm, fill
) -> None:
    uris = fill(source, 30)
    plan = start_run(source, output, make_labeler(policy=calm), SHARDS_OF_12, "r1")
    last_of_two_shards = uris.index(planned_table(plan.images)["image_uri"][23].as_py())
    labeler = make_labeler(policy=calm, before=kill_at_picture(last_of_two_shards))
    with pytest.raises(KilledError):
        label_source(source, output, labeler, SHARDS_OF_12, "r1")
    assert len(rows(output)) == 12
    jumpy = SHARDS_OF_12.model_copy(update={"drift_false_alarm_rate": 0.999999})
    summary = label_source(source, output, make_labeler(policy=calm), jumpy, "r1")
    assert (summary.drift.alarm, summary.drift.false_alarm_rate) == (False, 0.0001)
    assert "drift" not in summary.reasons


# --- confidence maps ----------------------------------------------------------------------------------------


def test_a_run_writes_a_confidence_map_beside_every_mask(source, settings, make_labeler, fill) -> None:
    uris, output = fill(source, 6), f"{source}/labels"
    storage.put(f"{source}/broken.png", b"")
    wanted = settings.model_copy(update={"confidence_maps": True})
    label_source(source, output, make_labeler(), wanted)
    maps = f"{output}/confidence_maps/{MODEL}"
    assert query(output, "SELECT confidence_map_uri FROM review_queue ORDER BY 1")[0].to_pylist() == sorted(
        f"{maps}/{uri.removeprefix(f'{source}/')}.png" for uri in uris
    )
    assert len(list(storage.list_objects(maps))) == 6
    assert query(output, "SELECT confidence_map_uri FROM failures")[0].to_pylist() == [None]
    assert label_source(source, output, make_labeler(), wanted).planned == 0
    elsewhere = label_source(source, f"{source}-other", make_labeler("bbbbbbbbbbbb"), settings)
    assert elsewhere.skipped["confidence maps of another OUTPUT"] == 6


# --- many at once -------------------------------------------------------------------------------------------


def test_runs_at_once_label_every_image_once_and_all_succeed(
    source, output, settings, make_labeler, fill
) -> None:
    uris, labeler = fill(source, 10), make_labeler()
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(label_source, source, output, labeler, settings) for _ in range(3)]
        summaries = [future.result() for future in running]
    assert sum(summary.review for summary in summaries) == 10
    assert max(Counter(labeler.seen).values()) == 1
    assert_each_once(output, uris)


def test_runs_planned_at_once_in_separate_tasks_label_every_image_once(
    source, output, settings, make_labeler, fill
) -> None:
    uris, labeler = fill(source, 10), make_labeler()
    plans = [start_run(source, output, labeler, settings) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda plan: label_run(plan, labeler, settings), plans))
    summaries = [finish_run(plan) for plan in plans]
    assert sum(summary.review for summary in summaries) == 10
    assert sum(summary.labelled_elsewhere for summary in summaries) == 20
    assert max(Counter(labeler.seen).values()) == 1
    assert_each_once(output, uris)


PROCESS = """
    import dataclasses, logging, sys, time
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np
    from segpipe.config import LabelSettings
    from segpipe.labeling.run import label_source

    @dataclasses.dataclass
    class Labeled:
        mask: np.ndarray
        confidence: float = 0.5
        discriminator_score: float = 0.5
        class_fractions: tuple = (1.0, 0.0)
        class_confidences: tuple = (0.5, float("nan"))

    class Labeler:
        model_id, digest, policy, classes = "aaaaaaaaaaaa", None, None, ("dark", "bright")
        batches = 0

        tiling = None
        image_range, smallest_decode, computed_at_once, judged_at_once = None, (1000, 1000), 1, 1
        pixels_at_once = gathered_images = None

        def compute_threads(self):
            return ThreadPoolExecutor(1)

        def prepare(self, image):
            return image

        def judge(self, prepared):
            self.batches += 1
            if self.batches == hang_at:
                print("hanging", flush=True)
                time.sleep(600)
            return prepared

        def finish(self, judged, height, width):
            return Labeled(np.zeros((height, width), np.uint8))

    source, output, run_id, hang_at = *sys.argv[1:4], int(sys.argv[4])
    settings = LabelSettings(shard_images=4, batch_images=2, fetch_threads=2, claim_seconds=60)
    print(label_source(source, output, Labeler(), settings, run_id).review)
"""


@pytest.fixture
def start_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """(source, output, run_id, hang_at=0) -> a labelling process; none outlives its test."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, output: str, run_id: str, hang_at: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(PROCESS), source, output, run_id, str(hang_at)]
        environment = os.environ | {"PYTHONPATH": str(Path(ledger_module.__file__).parents[2])}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("storage_root", ["s3"], indirect=True)
def test_a_process_killed_at_work_is_resumed_by_another(source, output, fill, start_process) -> None:
    uris = fill(source, 10)
    first = start_process(source, output, "r1", hang_at=4)
    assert first.stdout.readline() == "hanging\n"
    first.kill()
    first.wait(timeout=20)
    committed = len(rows(output))
    assert committed < 10
    let_the_lease_run_out(output)
    others = [start_process(source, output, run_id) for run_id in ("r1", "r2")]
    reviewed = [int(process.communicate(timeout=300)[0]) for process in others]
    assert sum(reviewed) == 10  # run r1 counts what it committed before it was killed
    assert_each_once(output, uris)


def test_pandas_reads_only_finished_facts_at_any_moment(tmp_path, settings, make_labeler, fill) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    uris = fill(source, 14)
    stop, seen = threading.Event(), []

    def read_on() -> None:
        while not stop.is_set():
            if list_parts(output):
                frame = pd.read_parquet(f"{output}/manifests")
                assert frame["image_uri"].is_unique
                assert_masks(frame.to_dict("records"))
                seen.append(len(frame))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read_on)
        try:
            label_source(source, output, make_labeler(before=lambda batch: stop.wait(0.05)), settings)
        finally:
            stop.set()
        reader.result()
    assert seen == sorted(seen)
    assert_each_once(output, uris)


def test_progress_is_told_the_total_and_every_image(tmp_path, settings, make_labeler, fill) -> None:
    fill(str(tmp_path / "in"), 5)
    told: list[int] = []

    class Counting:
        def advance(self, count: int = 1, note: str = "") -> None:
            told.append(count)

    @contextmanager
    def progress(total: int, description: str) -> Iterator[Counting]:
        assert total == 5
        yield Counting()

    label_source(str(tmp_path / "in"), str(tmp_path / "out"), make_labeler(), settings, progress=progress)
    assert sum(told) == 5
