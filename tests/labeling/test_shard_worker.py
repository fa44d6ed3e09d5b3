"""A worker in this process: shards in, rows out, and nothing written without a lease."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.errors import ModelError
from segpipe.labeling.engines import shard_worker
from segpipe.labeling.engines.local import label_images
from segpipe.labeling.engines.messages import (
    Grant,
    Shard,
    Task,
    decode_alive,
    decode_finished,
    decode_ready,
    encode,
)
from segpipe.labeling.engines.shard_worker import ShardWorker, versions
from segpipe.labeling.items import FinishedShard, PlannedImage
from segpipe.labeling.lease import Lease, Moment
from segpipe.labeling.place import Place, target_of
from segpipe.manifests.run_files import plan_uri


@pytest.fixture
def place(tmp_path: Path) -> Place:
    output = str(tmp_path / "out")
    storage.put(plan_uri(output, "r1"), b"")
    stamps_from = datetime(2026, 1, 1, tzinfo=UTC)
    masks = f"{output}/masks"
    return Place(str(tmp_path / "in"), output, masks, None, "r1", "aaaaaaaaaaaa", 2, stamps_from)


@pytest.fixture
def task(place: Place, settings: LabelSettings) -> Task:
    return Task("model", "d" * 64, None, "cpu", settings.model_dump_json(), place, versions())


@pytest.fixture
def shards(place: Place, fill: Callable[..., list[str]]) -> list[Shard]:
    """Six shards, of five images each but for the last, which has one."""
    images = [PlannedImage(n // 5, uri, "e", 1, f"{n}.png") for n, uri in enumerate(fill(place.source, 26))]
    return [Shard(number, tuple(images[5 * number : 5 * number + 5])) for number in range(6)]


def started(task: Task, labeler: object, lease_seconds: float = 600.0) -> ShardWorker:
    worker = ShardWorker()
    ready = decode_ready(json.loads(worker.start(encode(task), lambda *_: labeler))["ready"])
    worker.extend(encode(Grant(ready.now, lease_seconds)))
    return worker


def label(worker: ShardWorker, shard: Shard) -> FinishedShard:
    return decode_finished(json.loads(worker.label(encode(shard)))["finished"])


def test_its_rows_are_those_of_one_process(task, place, shards, settings, make_labeler) -> None:
    worker = started(task, make_labeler())
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda shard: label(worker, shard), shards))
    worker.stop()
    images = [image for shard in shards for image in shard.images]
    expected = list(label_images(images, make_labeler(), target_of(place, lambda: None), settings))
    assert [shard.shard for shard in found] == list(range(6))
    rows = [replace(row, labeled_at=task.place.stamps_from) for shard in found for row in shard.rows]
    assert rows == [replace(one.row, labeled_at=task.place.stamps_from) for one in expected]
    assert min(shard.legs.infer for shard in found) > 0


def test_a_shard_is_finished_also_when_no_other_follows(task, shards, make_labeler) -> None:
    worker = started(task, make_labeler())
    for shard in (shards[0], shards[5], shards[2]):
        assert len(label(worker, shard).rows) == len(shard.images)
    assert decode_alive(worker.extend(encode(Grant(Moment.now(), 9)))).done == 11
    worker.stop()


def test_without_a_lease_nothing_is_written(task, place, shards, make_labeler) -> None:
    worker = started(task, make_labeler(), lease_seconds=0.0)
    assert "lease was not renewed" in json.loads(worker.label(encode(shards[0])))["failed"]
    assert not Path(place.masks_root).exists()
    worker.extend(encode(Grant(Moment.now(), 600)))  # too late
    assert "lease was not renewed" in json.loads(worker.label(encode(shards[1])))["failed"]


def test_a_lease_counts_from_the_moment_told_however_late_it_arrives() -> None:
    lease, now = Lease(), Moment.now()
    lease.grant(Moment(now.wall - 5, now.steady - 5), 600)
    lease.require()
    lease.grant(Moment(now.wall - 5, now.steady - 5), 4)
    with pytest.raises(Exception, match="not renewed"):
        lease.require()
    lease.grant(now, 600)
    lease.end()
    lease.grant(now, 600)
    with pytest.raises(Exception, match="told to stop"):
        lease.require()


def test_once_it_has_stopped_nothing_is_under_way(task, place, shards, make_labeler) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def before(batch: object) -> None:
        at_work.set()
        go_on.wait(60)

    worker = started(task, make_labeler(before=before))
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(worker.label, encode(shards[0]))
        assert at_work.wait(60)
        stopped = threads.submit(worker.stop)
        with pytest.raises(TimeoutError):
            stopped.result(0.1)
        go_on.set()
        stopped.result(60)
        assert "told to stop" in json.loads(answer.result(60))["failed"]
    assert not Path(place.masks_root).exists()


def test_failures_count_over_shards_and_a_tripped_breaker_ends_the_worker(task, shards, make_labeler) -> None:
    def broken(batch: object) -> None:
        raise RuntimeError("device lost")

    settings = LabelSettings(max_failure_rate=0.1, batch_images=1, fetch_threads=1)  # 6 of the last 64
    worker = started(replace(task, settings=settings.model_dump_json()), make_labeler(before=broken))
    assert {row.reason for row in label(worker, shards[0]).rows} == {"inference"}
    assert "7 of the last 7 images failed" in json.loads(worker.label(encode(shards[1])))["failed"]
    assert "7 of the last 7" in json.loads(worker.label(encode(shards[2])))["failed"]


def test_what_it_logs_is_told_once(task, shards, make_labeler) -> None:
    worker = started(task, make_labeler())
    shard_worker.logging.getLogger("segpipe.labeling").warning("nearly %s", "black")
    assert decode_alive(worker.extend(encode(Grant(Moment.now(), 9)))).said == ((30, "nearly black"),)
    assert decode_alive(worker.extend(encode(Grant(Moment.now(), 9)))).said == ()
    worker.stop()


def refusal(task: Task, load: Callable[..., object]) -> str:
    return json.loads(ShardWorker().start(encode(task), load))["refused"]


def test_it_refuses_another_version_another_model_and_an_output_it_does_not_see(
    task, tmp_path, make_labeler
) -> None:
    for package in ("segpipe", "torch", "python"):
        other = replace(task, versions=task.versions | {package: "0.0"})
        assert f"has {package} {task.versions[package]}, the driver 0.0" in refusal(other, 1 / 1)
    assert "model bbbbbbbbbbbb, not aaaaaaaaaaaa" in refusal(task, lambda *_: make_labeler("bbbbbbbbbbbb"))

    def lacking(*_: object) -> None:
        raise ModelError("a generator from an .onnx file needs onnxruntime: pip install 'segpipe[onnx]'")

    assert "pip install 'segpipe[onnx]'" in refusal(task, lacking)
    unseen = replace(task, place=replace(task.place, output=str(tmp_path / "elsewhere")))
    assert "an OUTPUT that all nodes share" in refusal(unseen, lambda *_: make_labeler())


def test_it_asks_for_as_many_shards_as_keep_it_busy(task, make_labeler) -> None:
    def depth(**changes: int) -> int:
        settings = LabelSettings(**changes).model_dump_json()
        worker = ShardWorker()
        ready = json.loads(worker.start(encode(replace(task, settings=settings)), lambda *_: make_labeler()))
        worker.stop()
        return ready["ready"]["depth"]

    # Two cores and 8 fetching threads read 20 batches of 8 ahead: 160 images.
    assert depth() == 2
    assert depth(shard_images=100) == 3
    assert depth(shard_images=4) == 4
