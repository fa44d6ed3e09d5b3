"""What `label --engine ray` costs: at start, per shard, and how many workers one driver feeds.

Two parts: a real model on this machine's cores, by one process and by 1 and 2 workers; and workers that load
no torch and sleep for a shard's time, 1 to 32 on one driver, which plans, decides and commits as always. Each
is repeated, all taking turns, and the median counts: the cores may be shared with other work.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import RESULTS, write_results
from segpipe.config import LabelSettings
from segpipe.labeling.engines import ray as ray_engine
from segpipe.labeling.engines.messages import Alive, Ready, decode_shard, decode_task, encode
from segpipe.labeling.engines.shard_worker import ShardWorker
from segpipe.labeling.engines.work import ServedModel
from segpipe.labeling.items import FinishedShard, Legs, PlannedImage, Threads
from segpipe.labeling.lease import Moment
from segpipe.labeling.place import Place
from segpipe.manifests.schema import Row

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests/support"
sys.path.insert(0, str(SUPPORT))
SHARD_SECONDS, SHARD_IMAGES = 2.0, 256
SHARD_OF_REAL = 16
START_SECONDS = 500.0


class SleepingWorker:
    """A ShardWorker that sleeps for a shard's time and says that all of its images are labelled."""

    def __init__(self) -> None:
        self._working, self._done = Lock(), 0

    def start(self, text: str, _load: object) -> str:
        """As ShardWorker.start."""
        task = decode_task(text)
        self._place = task.place
        _wait_for_all(Path(task.url), int(json.loads(task.settings)["workers"]))
        ready = Ready(Moment.now(), 2, Threads(1, 1))
        return f'{{"ready": {encode(ready)}}}'

    def label(self, text: str) -> str:
        """As ShardWorker.label."""
        shard = decode_shard(text)
        with self._working:
            time.sleep(SHARD_SECONDS)
        self._done += len(shard.images)
        rows = tuple(_row(image, self._place) for image in shard.images)
        finished = FinishedShard(shard.number, rows, SHARD_SECONDS, Legs(infer=SHARD_SECONDS), Threads(1, 1))
        return f'{{"finished": {encode(finished)}}}'

    def extend(self, _grant: str) -> str:
        """As ShardWorker.extend."""
        return encode(Alive(Moment.now(), self._done, ()))

    def stop(self) -> str:
        """As ShardWorker.stop."""
        return "{}"


def _wait_for_all(folder: Path, workers: int) -> None:
    """Until so many have come here, so that the time which processes take to start counts for no shard."""
    (folder / f"here-{secrets.token_hex(8)}").touch()
    deadline = time.monotonic() + START_SECONDS
    while len(list(folder.glob("here-*"))) < workers and time.monotonic() < deadline:
        time.sleep(0.1)


def _row(image: PlannedImage, place: Place) -> Row:
    return Row(
        image_uri=image.image_uri,
        image_etag=image.image_etag,
        image_bytes=image.image_bytes,
        image_width=640,
        image_height=480,
        mask_uri=f"{place.masks_root}/{image.mask_key}",
        mask_sha256="0" * 64,
        decision="review",
        reason="no_policy",
        confidence=0.5,
        discriminator_score=0.123456789,
        class_fractions=[0.1] * 10,
        class_confidences=[0.9] * 10,
        audit=False,
        inclusion_probability=1.0,
        model_id=place.model_id,
        policy_id=None,
        run_id=place.run_id,
        shard=image.shard,
        labeled_at=datetime.now(UTC),
        error=None,
    )


@dataclass(frozen=True)
class Timed:
    """A run: seconds from the call to its end, those since the first worker was ready, and the core seconds
    of the process that called."""

    seconds: float
    working_seconds: float
    own_core_seconds: float
    shards: int


def _label(source: Path, output: Path, labeler: Any, served: ServedModel, settings: LabelSettings) -> Timed:
    from segpipe.labeling.run import label_source

    started, core_seconds = time.perf_counter(), time.process_time()
    summary = label_source(
        str(source), str(output), labeler, settings, f"r-{secrets.token_hex(3)}", served=served
    )
    taken = time.perf_counter() - started
    shutil.rmtree(output)
    shards = -(-summary.planned // settings.shard_images)
    return Timed(taken, summary.seconds, time.process_time() - core_seconds, shards)


def _sleeping(folder: Path, workers: int, shards_each: int) -> Timed:
    """Workers that sleep, each for so many shards."""
    from brightness import Brightness, served

    source, shards, together = folder / "source", workers * shards_each, folder / secrets.token_hex(4)
    source.mkdir(exist_ok=True)
    together.mkdir()
    (source / "00000000.png").write_bytes(b"never read")
    keys = [f"{source}/{number:08d}.png" for number in range(shards * SHARD_IMAGES)]
    table = pa.table({"uri": keys, "etag": ["e"] * len(keys), "size": [1000] * len(keys)})
    pq.write_table(table, folder / "list.parquet")
    settings = LabelSettings(
        shard_images=SHARD_IMAGES,
        inventory=str(folder / "list.parquet"),
        engine="ray",
        workers=str(workers),
        worker_cpus=0.01,
    )
    ray_engine.ShardWorker = SleepingWorker  # type: ignore[misc,assignment]
    return _label(source, folder / "out", Brightness(), served(together), settings)


@contextmanager
def _one_ray() -> Iterator[None]:
    """Ray for all runs within, which else start their own."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _of_sleeping(workers: int, runs: list[Timed]) -> dict[str, Any]:
    """The medians: shards a second, and that against the most that so many workers could do."""
    rates = [run.shards / run.working_seconds for run in runs]
    core_seconds = [run.own_core_seconds / run.shards for run in runs]
    return {
        "workers": workers,
        "runs": len(runs),
        "shards": runs[0].shards,
        "shards_per_second": round(median(rates), 3),
        "of_linear": round(median(rates) * SHARD_SECONDS / workers, 3),
        "of_linear_each": [round(rate * SHARD_SECONDS / workers, 3) for rate in rates],
        "driver_core_seconds_per_shard": round(median(core_seconds), 4),
        "seconds_before_the_first_shard": round(median(run.seconds - run.working_seconds for run in runs), 1),
    }


def _sleepers(
    folder: Path, most_workers: int, shards_each: int, rounds: int
) -> Iterator[list[dict[str, Any]]]:
    """1, 2, 4 and so on, by turns: what is known after each run."""
    counts = [2**power for power in range(most_workers.bit_length())]
    runs: dict[int, list[Timed]] = {workers: [] for workers in counts}
    for _ in range(rounds):
        for workers in counts:
            runs[workers].append(_sleeping(folder, workers, shards_each))
            click.echo(f"{workers} that sleep: {runs[workers][-1]}")
            yield [_of_sleeping(workers, of_one) for workers, of_one in runs.items() if of_one]


def _real(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """A random model on this machine: one process with all cores against 1 and 2 workers of one core each."""
    from random_model import write_random_model

    from segpipe.models.labeler import load_model
    from segpipe.models.served import load_planned

    source = folder / "images"
    _write_pictures(source, images)
    model = write_random_model(str(folder / "model"), working_size=(256, 352))
    labeler, served = load_model(model, "cpu"), ServedModel(model, load_planned)
    settings = {
        "local": LabelSettings(shard_images=SHARD_OF_REAL),
        "ray, 1 worker": LabelSettings(shard_images=SHARD_OF_REAL, engine="ray", workers="1"),
        "ray, 2 workers": LabelSettings(shard_images=SHARD_OF_REAL, engine="ray", workers="2"),
    }
    runs: dict[str, list[Timed]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, one in settings.items():
            runs[name].append(_label(source, folder / "out", labeler, served, one))
            click.echo(f"{name}: {runs[name][-1]}")
    return {name: _of_real(images, of_one, runs["local"]) for name, of_one in runs.items()}


def _write_pictures(folder: Path, images: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(images):
        pixels = np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg")


def _of_real(images: int, runs: list[Timed], local: list[Timed]) -> dict[str, Any]:
    """The medians, also of the rate against that of one process in the same round."""
    ratios = [one.working_seconds / run.working_seconds for run, one in zip(runs, local, strict=True)]
    return {
        "images_per_second": round(images / median(run.working_seconds for run in runs), 2),
        "times_local": round(median(ratios), 3),
        "times_local_each": [round(ratio, 3) for ratio in ratios],
        "seconds_before_the_first_shard": round(median(run.seconds - run.working_seconds for run in runs), 1),
    }


@click.command()
@click.option("--images", default=64, show_default=True, help="Of each of the real model's runs; 0: none.")
@click.option("--most-workers", default=32, show_default=True, help="Of those that sleep; 0: none.")
@click.option("--shards-each", default=10, show_default=True, help="Shards for each sleeping worker.")
@click.option("--rounds", default=3, show_default=True)
def main(images: int, most_workers: int, shards_each: int, rounds: int) -> None:
    """Measure both parts and write them down."""
    paths = os.pathsep.join([str(ROOT), str(SUPPORT)])
    os.environ |= {"PYTHONPATH": paths, "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as name, _one_ray():
        for sleeping in _sleepers(Path(name), most_workers, shards_each, rounds):
            _keep({"sleeping_workers": sleeping})
    with tempfile.TemporaryDirectory() as name:
        ray_engine.ShardWorker = ShardWorker  # type: ignore[misc]
        if images:
            _keep({"real_model": _real(Path(name), images, rounds)})


def _keep(part: dict[str, Any]) -> None:
    """Put a part's figures beside the other's."""
    path = RESULTS / "ray_scale.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    parts = {name: kept[name] for name in ("sleeping_workers", "real_model") if name in kept}
    write_results("ray_scale", parts | part)


if __name__ == "__main__":
    main()
