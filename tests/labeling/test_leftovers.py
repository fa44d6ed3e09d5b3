"""What a clean-up may take away, and that every finished fact and every run that can go on outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from silent_claims import let_the_lease_run_out

from segpipe import storage
from segpipe.config import CompactSettings, LabelSettings, VerifySettings
from segpipe.labeling import leftovers, run_record
from segpipe.labeling import plan_files as plan_files_module
from segpipe.labeling.claim import hold_claim
from segpipe.labeling.leftovers import remove_leftovers
from segpipe.labeling.plan import pending_images
from segpipe.labeling.run import label_source, start_run
from segpipe.labeling.run_record import load_plan
from segpipe.manifests.compaction import compact
from segpipe.manifests.store import read_manifest
from segpipe.manifests.verification import verify

MONTH = timedelta(days=30)
LATER = datetime.now(UTC) + timedelta(days=40)
PLANNER = """
import sys
from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.labeling import plan_files, run_record
from segpipe.labeling.run import start_run
from tests.support.brightness import Brightness

def create(uri, data, create=storage.create):
    if uri.endswith(sys.argv[3]):
        print("about to create it", flush=True)
        sys.stdin.read()
    create(uri, data)

run_record.FILE_IMAGES, plan_files.BATCH_IMAGES, storage.create = 4, 3, create
start_run(*sys.argv[1:3], Brightness(), LabelSettings(shard_images=5, claim_seconds=60), "r1")
"""


def tree(root: str) -> dict[str, bytes]:
    return {found.key: storage.read_bytes(found.uri) for found in storage.list_objects(root)}


@dataclass
class Places:
    source: str
    output: str


@pytest.fixture
def make_places(fill: Callable[..., list[str]]) -> Callable[[str], Places]:
    """(root) -> a bucket of 12 images and an empty output."""

    def make(root: str) -> Places:
        places = Places(storage.join(root, "raw"), storage.join(root, "out"))
        fill(places.source, 12)
        return places

    return make


@pytest.fixture
def places(make_places: Callable[[str], Places], tmp_path: Path) -> Places:
    return make_places(str(tmp_path))


def finish_and_compact(places: Places, labeler: Any, settings: LabelSettings) -> None:
    """Two runs that labelled six images in all."""
    label_source(places.source, places.output, labeler, settings, "finished", limit=4)
    label_source(places.source, places.output, labeler, settings, "finished-too", limit=2)
    assert compact(places.output, CompactSettings(min_parts=2)).parts == 2


@dataclass
class StopAfter:
    """Progress that interrupts the run once so many images are done."""

    images: int

    def advance(self, count: int = 1, note: str = "") -> None:
        self.images -= count
        if self.images < 0:
            raise KeyboardInterrupt


def interrupt(places: Places, labeler: Any, settings: LabelSettings, run_id: str, images: int) -> None:
    """A run in shards of 2 that stops after so many images, with the parts before that committed."""
    small = settings.model_copy(update={"shard_images": 2})
    stop = StopAfter(images)
    with pytest.raises(KeyboardInterrupt):
        label_source(
            places.source, places.output, labeler, small, run_id, progress=lambda *_: nullcontext(stop)
        )


def test_only_the_plan_of_the_abandoned_run_goes(
    storage_root: str, make_places: Callable[[str], Places], make_labeler: Any, settings: LabelSettings
) -> None:
    places = make_places(storage_root)
    finish_and_compact(places, make_labeler(), settings)
    start_run(places.source, places.output, make_labeler(), settings, "abandoned")
    interrupt(places, make_labeler(), settings, "resumable", 4)
    before = tree(places.output)

    removed = remove_leftovers(places.output, MONTH, LATER)

    assert removed.runs == ("abandoned",)
    after = tree(places.output)
    gone = {"runs/abandoned/plan.parquet", "runs/abandoned/run.json"}
    assert before.keys() - after.keys() - {key for key in before if key.startswith("claims/")} == gone
    assert {key: data for key, data in after.items() if not key.startswith("claims/")} == {
        key: data for key, data in before.items() if not key.startswith("claims/") and key not in gone
    }
    assert len([key for key in after if key.startswith("claims/")]) == 1


def test_a_stopped_run_with_a_part_can_be_resumed_after_a_clean_up(
    places: Places, make_labeler: Any, settings: LabelSettings
) -> None:
    finish_and_compact(places, make_labeler(), settings)
    interrupt(places, make_labeler(), settings, "resumable", 4)
    remove_leftovers(places.output, MONTH, LATER)
    label_source(places.source, places.output, make_labeler(), settings, "resumable")
    assert read_manifest(places.output).num_rows == 12
    assert load_plan(places.output, "resumable") is not None


def test_a_run_that_is_young_stays(places: Places, make_labeler: Any, settings: LabelSettings) -> None:
    start_run(places.source, places.output, make_labeler(), settings, "young")
    before = tree(places.output)
    removed = remove_leftovers(places.output, MONTH, datetime.now(UTC) + timedelta(days=29))
    assert (removed.runs, removed.claims) == ((), 0)
    assert tree(places.output) == before


def test_while_a_run_labels_no_plan_of_its_model_is_touched(
    places: Places, make_labeler: Any, settings: LabelSettings
) -> None:
    plan = start_run(places.source, places.output, make_labeler(), settings, "live")
    with hold_claim(places.output, plan.model_id, "live", 20):
        before = tree(places.output)
        assert remove_leftovers(places.output, MONTH, LATER).runs == ()
        assert before.keys() - tree(places.output).keys() == {f"claims/{plan.model_id}/00000001.json"}
        assert pending_images(plan).count == 12
    assert remove_leftovers(places.output, MONTH, LATER).runs == ("live",)


def test_another_model_s_live_run_does_not_keep_the_leftovers(
    places: Places, make_labeler: Any, settings: LabelSettings
) -> None:
    start_run(places.source, places.output, make_labeler(), settings, "abandoned")
    with hold_claim(places.output, "bbbbbbbbbbbb", "live", 20) as claim:
        assert remove_leftovers(places.output, MONTH, LATER).runs == ("abandoned",)
        claim.require_newest()


@pytest.fixture
def plan_anew(
    places: Places, make_labeler: Any, settings: LabelSettings, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Another model's run under the id r1, whose plan has several files."""
    monkeypatch.setattr(run_record, "FILE_IMAGES", 4)
    monkeypatch.setattr(plan_files_module, "BATCH_IMAGES", 3)

    def plan() -> None:
        start_run(places.source, places.output, make_labeler(model_id="b" * 12), settings, "r1")

    return plan


def assert_whole(places: Places) -> None:
    plan = load_plan(places.output, "r1")
    assert plan is not None
    assert (plan.model_id, pending_images(plan).count) == ("b" * 12, 12)
    assert "runs/r1/run.json" in tree(places.output)


def test_a_run_that_takes_the_id_of_one_that_is_removed_loses_nothing(
    places: Places, make_labeler: Any, settings: LabelSettings, monkeypatch: pytest.MonkeyPatch, plan_anew
) -> None:
    start_run(places.source, places.output, make_labeler(), settings, "r1")
    delete = storage.delete

    def delete_and_plan_anew(uri: str) -> None:
        delete(uri)
        if uri.endswith("r1/plan.parquet"):
            monkeypatch.setattr(storage, "delete", delete)
            plan_anew()

    monkeypatch.setattr(storage, "delete", delete_and_plan_anew)
    assert remove_leftovers(places.output, MONTH, LATER).runs == ("r1",)
    assert_whole(places)


def test_a_run_whose_id_was_another_s_when_it_was_looked_for_stays(
    places: Places, make_labeler: Any, settings: LabelSettings, monkeypatch: pytest.MonkeyPatch, plan_anew
) -> None:
    start_run(places.source, places.output, make_labeler(), settings, "r1")
    is_claimed = leftovers.is_claimed

    def others_come_first(*asked: Any) -> bool:
        monkeypatch.setattr(leftovers, "is_claimed", is_claimed)
        assert remove_leftovers(places.output, MONTH, LATER).runs == ("r1",)
        plan_anew()
        return is_claimed(*asked)

    monkeypatch.setattr(leftovers, "is_claimed", others_come_first)
    assert remove_leftovers(places.output, MONTH, LATER).runs == ()
    assert_whole(places)


def test_claims_of_killed_runs_go_and_the_newest_carries_the_number_on(places: Places) -> None:
    for number in (3, 4, 5):
        claim = '{"run_id": "r", "owner": "o", "expires_at": "2026-01-01T00:00:00+00:00", "released": false}'
        storage.put(storage.join(places.output, f"claims/aaaaaaaaaaaa/{number:08d}.json"), claim.encode())
    assert remove_leftovers(places.output, MONTH, LATER).claims == 2
    assert list(tree(places.output)) == ["claims/aaaaaaaaaaaa/00000005.json"]


def test_a_damaged_plan_is_named_and_left_alone(places: Places) -> None:
    storage.put(storage.join(places.output, "runs/broken/plan.parquet"), b"not parquet")
    removed = remove_leftovers(places.output, MONTH, LATER)
    assert removed.damaged == ("broken",)
    assert list(tree(places.output)) == ["runs/broken/plan.parquet"]


def test_unfinished_files_go_when_no_writer_can_be_at_them(tmp_path: Path) -> None:
    masks = tmp_path / "masks" / "deep"
    masks.mkdir(parents=True)
    now = datetime.now(UTC)
    for name, age in ((".segpipe-tmp-old", 25), (".segpipe-tmp-new", 23), ("old.png", 10_000)):
        (masks / name).write_bytes(b"x")
        written = (now - timedelta(hours=age)).timestamp()
        os.utime(masks / name, (written, written))
    assert remove_leftovers(str(tmp_path), MONTH, now).unfinished_files == 1
    assert sorted(path.name for path in masks.iterdir()) == [".segpipe-tmp-new", "old.png"]


def test_an_output_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    removed = remove_leftovers(str(tmp_path / "nothing"), MONTH, LATER)
    assert (removed.runs, removed.claims, removed.unfinished_files, removed.damaged) == ((), 0, 0, ())


@pytest.fixture
def start_planner(places: Places) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """(name) -> a process that plans run r1 and waits before it creates the file that ends so."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PLANNER, places.source, places.output, name]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environment, **pipes))
        assert started[-1].stdout.readline() == "about to create it\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def plan_files(output: str) -> list[str]:
    return [key for key in tree(output) if key.endswith(".parquet")]


def test_the_files_of_a_planner_that_lives_stay_and_those_of_one_that_was_killed_go(
    places: Places, start_planner: Any, make_labeler: Any, settings: LabelSettings
) -> None:
    planner = start_planner("/plan.parquet")
    begun = plan_files(places.output)
    assert [key.rpartition("-")[2] for key in begun] == ["00001.parquet"]
    assert remove_leftovers(places.output, MONTH, LATER).unfinished_files == 0
    assert plan_files(places.output) == begun
    planner.kill()
    planner.wait()
    let_the_lease_run_out(places.output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_record, "FILE_IMAGES", 4)
        patch.setattr(plan_files_module, "BATCH_IMAGES", 3)
        start_run(places.source, places.output, make_labeler(), settings, "r1")
    both = plan_files(places.output)
    assert (len(both), set(begun) < set(both)) == (3, True)  # the plan and its file beside what was left
    assert remove_leftovers(places.output, MONTH, datetime.now(UTC)).unfinished_files == 1
    assert plan_files(places.output) == [key for key in both if key not in begun]
    label_source(places.source, places.output, make_labeler(), settings, "r1")
    assert verify(places.output, VerifySettings()).findings == {}


def test_the_files_of_a_killed_planner_go_once_its_claim_has_run_out(
    places: Places, start_planner: Any
) -> None:
    planner = start_planner("/plan.parquet")
    planner.kill()
    planner.wait()
    assert remove_leftovers(places.output, MONTH, LATER).unfinished_files == 0
    let_the_lease_run_out(places.output)
    assert remove_leftovers(places.output, MONTH, LATER).unfinished_files == 1
    assert plan_files(places.output) == []


def test_a_planner_that_has_lost_its_claim_freezes_nothing(
    places: Places, start_planner: Any, make_labeler: Any, settings: LabelSettings
) -> None:
    planner = start_planner("-00001.parquet")
    planner.send_signal(signal.SIGSTOP)
    let_the_lease_run_out(places.output)
    start_run(places.source, places.output, make_labeler(), settings, "r2")
    planner.send_signal(signal.SIGCONT)
    _, error = planner.communicate(timeout=100)
    assert "run r1 lost its claim" in error
    assert load_plan(places.output, "r1") is None
    assert remove_leftovers(places.output, MONTH, datetime.now(UTC)).unfinished_files == 1
    assert plan_files(places.output) == ["runs/r2/plan.parquet"]
