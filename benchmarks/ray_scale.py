"""What `label --engine ray` costs: at start, per shard, and how many workers one driver feeds.

Two parts: a real model on this machine's cores, by one process and by 1 and 2 workers; and workers that load
no torch and sleep for a shard's time, 1 to 32 on one driver, which plans, decides and commits as always.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import write_results
from segpipe.config import LabelSettings
from segpipe.labeling.engines import ray as ray_engine
from segpipe.labeling.engines.messages import Alive, Ready, decode_shard, decode_task, encode
from segpipe.labeling.engines.work import ServedModel
from segpipe.labeling.items import FinishedShard, Legs, PlannedImage, Threads
from segpipe.labeling.lease import Moment
from segpipe.labeling.place import Place
from segpipe.manifests.schema import Row

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests/support"
sys.path.insert(0, str(SUPPORT))
SHARD_SECONDS, SHARD_IMAGES = 2.0, 256


class SleepingWorker:
    """A ShardWorker that sleeps for a shard's time and says that all of its images are labelled."""

    def __init__(self) -> None:
        self._working, self._done = Lock(), 0

    def start(self, text: str, _load: object) -> str:
        """As ShardWorker.start."""
        self._place = decode_task(text).place
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
    """A run: seconds from the call to its end, and those since the first worker was ready."""

    seconds: float
    working_seconds: float
    shards: int


def _label(source: Path, output: Path, labeler: Any, served: ServedModel, settings: LabelSettings) -> Timed:
    from segpipe.labeling.run import label_source

    started = time.perf_counter()
    summary = label_source(
        str(source), str(output), labeler, settings, f"r-{secrets.token_hex(3)}", served=served
    )
    taken = time.perf_counter() - started
    shutil.rmtree(output)
    shards = -(-summary.planned // settings.shard_images)
    return Timed(taken, summary.seconds, shards)


def _sleeping(folder: Path, workers: int, shards_each: int) -> dict[str, float]:
    """Workers that sleep: shards a second, and that against the most that so many could do."""
    from brightness import Brightness, served

    source, shards = folder / "source", workers * shards_each
    source.mkdir(exist_ok=True)
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
    timed = _label(source, folder / "out", Brightness(), served(folder), settings)
    rate = timed.shards / timed.working_seconds
    return {
        "workers": workers,
        "shards": timed.shards,
        "seconds": round(timed.seconds, 1),
        "working_seconds": round(timed.working_seconds, 1),
        "shards_per_second": round(rate, 3),
        "of_linear": round(rate * SHARD_SECONDS / workers, 3),
    }


def _real(folder: Path, images: int) -> dict[str, Any]:
    """A random model on this machine: one process with all cores against 1 and 2 workers of one core each."""
    import numpy as np
    from PIL import Image
    from random_model import write_random_model

    from segpipe.models.labeler import load_model
    from segpipe.models.served import load_planned

    source = folder / "images"
    source.mkdir()
    for number in range(images):
        pixels = np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(source / f"{number:05d}.jpg")
    model = write_random_model(str(folder / "model"), working_size=(256, 352))
    labeler, served = load_model(model, "cpu"), ServedModel(model, load_planned)
    runs: dict[str, Callable[[int], LabelSettings]] = {
        "local": lambda shard: LabelSettings(shard_images=shard),
        "ray, 1 worker": lambda shard: LabelSettings(shard_images=shard, engine="ray", workers="1"),
        "ray, 2 workers": lambda shard: LabelSettings(shard_images=shard, engine="ray", workers="2"),
    }
    found: dict[str, Any] = {}
    for name, settings in runs.items():
        for shard in (16, 64):
            timed = _label(source, folder / "out", labeler, served, settings(shard))
            found[f"{name}, shards of {shard}"] = {
                key: round(value, 2) for key, value in asdict(timed).items()
            } | {"images_per_second": round(images / timed.working_seconds, 2)}
            click.echo(f"{name}, shards of {shard}: {timed}")
    return found


@click.command()
@click.option("--images", default=256, show_default=True, help="Of the real model's runs.")
@click.option("--most-workers", default=32, show_default=True, help="Of those that sleep.")
@click.option("--shards-each", default=8, show_default=True, help="Shards for each sleeping worker.")
def main(images: int, most_workers: int, shards_each: int) -> None:
    """Measure both parts and write them down."""
    paths = os.pathsep.join([str(ROOT), str(SUPPORT)])
    os.environ |= {"PYTHONPATH": paths, "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = _real(folder, images) if images else {}
        sleeping = []
        workers = 1
        while workers <= most_workers:
            sleeping.append(_sleeping(folder, workers, shards_each))
            click.echo(str(sleeping[-1]))
            workers *= 2
    write_results("ray_scale", {"real_model": real, "sleeping_workers": sleeping})


if __name__ == "__main__":
    main()
