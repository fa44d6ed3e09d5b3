"""Kill workers, nodes and drivers of `label --engine ray` until enough died: nothing lost, nothing doubled.

Two Ray nodes on loopback, a real S3 server, and a labeler that loads no torch, so that a kill meets work
within seconds. Each round's rows, masks and digests are looked at without segpipe, and by `segpipe verify`.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import write_results
from benchmarks.s3_server import s3_server

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests/support"
sys.path.insert(0, str(SUPPORT))
CLAIM_SECONDS = 8
LONGEST_ROUND_SECONDS = 900
DRIVER = """
import sys
from pathlib import Path
from brightness import Brightness, served
from segpipe.config import LabelSettings
from segpipe.errors import SegpipeError
from segpipe.labeling.run import label_source
from segpipe.stopping import StoppedError, stop_on_signals
source, output, orders, settings = sys.argv[1:]
try:
    with stop_on_signals(lambda status: None):
        settings = LabelSettings.model_validate_json(settings)
        label_source(source, output, Brightness(None, orders), settings, "r1", served=served(Path(orders)))
except StoppedError as stop:
    sys.exit(stop.status)
except SegpipeError as error:
    print(error, flush=True)
    sys.exit(1)
"""


@dataclass
class Round:
    """A run that is killed and resumed until it is done."""

    bucket: Any
    output: str
    orders: Path
    environment: dict[str, str]
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    ends: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """The driver, for the first time or again."""
        from segpipe.config import LabelSettings

        settings = LabelSettings(
            shard_images=4,
            batch_images=2,
            fetch_threads=2,
            claim_seconds=CLAIM_SECONDS,
            engine="ray",
            workers="3",
        )
        command = [sys.executable, "-c", DRIVER, self.bucket.source, f"s3://{self.bucket.name}/{self.output}"]
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [*command, str(self.orders), settings.model_dump_json()],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def is_over(self) -> bool:
        """Whether the run is done; a driver that has ended otherwise is started again."""
        assert self.driver is not None
        status = self.driver.poll()
        if status is None:
            return False
        self.ends[str(status)] += 1
        if status != 0:
            self.start()
        return status == 0

    def workers(self) -> list[int]:
        """The processes that have begun to label and live."""
        told = [int(path.name.removeprefix("worker-")) for path in self.orders.glob("worker-*")]
        return [process for process in told if Path(f"/proc/{process}").exists()]

    def parts(self) -> int:
        """How many shards are committed."""
        return len(self.bucket.keys(f"{self.output}/manifests/"))


@dataclass
class Killer:
    """Two nodes, and what is done to them and to the run."""

    cluster: Any
    nodes: list[Any]
    frozen: list[tuple[int, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def strike(self, kind: str, target: Round) -> None:
        """Do harm of this kind, if there is somebody to do it to."""
        strikes: dict[str, Callable[[Round], bool]] = {
            "worker killed": lambda one: self._signal_worker(one, signal.SIGKILL),
            "worker frozen, thawed later": self._freeze,
            "driver killed, resumed": lambda one: self._signal_driver(one, signal.SIGKILL),
            "driver told to stop, resumed": lambda one: self._signal_driver(one, signal.SIGTERM),
            "node's raylet killed, node replaced": lambda _: self._kill_node(),
        }
        if strikes[kind](target):
            self.done[kind] += 1
            click.echo(f"{sum(self.done.values())} {kind}, {target.parts()} parts")

    def thaw(self) -> None:
        """Let those go on that were frozen for longer than any lease."""
        now = time.monotonic()
        for process, until in [one for one in self.frozen if one[1] <= now]:
            self.frozen.remove((process, until))
            _send(process, signal.SIGCONT)

    def _signal_worker(self, target: Round, number: int) -> bool:
        workers = target.workers()
        return bool(workers) and _send(random.choice(workers), number)

    def _freeze(self, target: Round) -> bool:
        workers = [one for one in target.workers() if one not in dict(self.frozen)]
        if not workers:
            return False
        process = random.choice(workers)
        self.frozen.append((process, time.monotonic() + 2 * CLAIM_SECONDS))
        return _send(process, signal.SIGSTOP)

    def _signal_driver(self, target: Round, number: int) -> bool:
        assert target.driver is not None
        target.driver.send_signal(number)
        target.driver.wait()
        return True

    def _kill_node(self) -> bool:
        node = self.nodes.pop()
        for info in node.all_processes["raylet"]:
            info.process.kill()
        self.nodes.append(self.cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20))
        return True


def _send(process: int, number: int) -> bool:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


KINDS = [
    *["worker killed"] * 5,
    "worker frozen, thawed later",
    "driver killed, resumed",
    "driver told to stop, resumed",
    "node's raylet killed, node replaced",
]


@contextmanager
def _cluster() -> Iterator[Killer]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": 100 * 2**20,
            "include_dashboard": False,
        },
        shutdown_at_exit=False,
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield Killer(cluster, [cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)])
    finally:
        cluster.shutdown()


def _bucket(images: int) -> Any:
    import boto3
    from s3_bucket import Bucket

    client, name = boto3.client("s3"), f"kills-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    keys = [f"raw/{number:05d}.png" for number in range(images)]
    for number, key in enumerate(keys):
        client.put_object(Bucket=name, Key=key, Body=_picture(number))
    return Bucket(client, name, keys)


def _picture(seed: int) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _play(round_: Round, killer: Killer, kills: int, pause: float) -> None:
    """Strike until the run is done or enough was done; then let it come to its end."""
    for number in range(10):
        (round_.orders / f"slow-{number}").touch()  # so that a kill meets work
    round_.start()
    began = time.monotonic()
    next_at = began + pause
    while not round_.is_over():
        killer.thaw()
        enough = sum(killer.done.values()) >= kills
        if enough or time.monotonic() - began > LONGEST_ROUND_SECONDS:
            for path in round_.orders.glob("slow-*"):
                path.unlink()
        elif time.monotonic() >= next_at and round_.workers():
            killer.strike(random.choice(KINDS), round_)
            next_at = time.monotonic() + random.uniform(0.5, 1.5) * pause
        time.sleep(0.1)


def _findings(round_: Round) -> dict[str, Any]:
    """Raises AssertionError for a row lost or doubled, or a mask that is not what its row says."""
    from segpipe.config import VerifySettings
    from segpipe.manifests.verification import verify

    rows = round_.bucket.assert_finished_facts(round_.output)
    images = [f"s3://{round_.bucket.name}/{key}" for key in round_.bucket.images]
    assert sorted(row["image_uri"] for row in rows) == images
    found = verify(f"s3://{round_.bucket.name}/{round_.output}", VerifySettings())
    assert found.findings == {}, found
    return {"rows": len(rows), "parts": found.parts, "masks_read": found.masks_read}


@click.command()
@click.option("--kills", default=40, show_default=True)
@click.option("--images", default=800, show_default=True, help="Per round.")
@click.option("--pause", default=6.0, show_default=True, help="Seconds between kills, on average.")
def main(kills: int, images: int, pause: float) -> None:
    """Kill until so many have died, and write what was found."""
    random.seed(0)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    began, rounds = time.monotonic(), []
    with s3_server("moto"), _cluster() as killer, tempfile.TemporaryDirectory() as folder:
        while sum(killer.done.values()) < kills:
            orders = Path(folder, f"orders-{len(rounds)}")
            orders.mkdir()
            round_ = Round(_bucket(images), "labels", orders, dict(os.environ), Path(folder, "driver.log"))
            _play(round_, killer, kills, pause)
            rounds.append(_findings(round_) | {"driver_ends": dict(round_.ends)})
            click.echo(json.dumps(rounds[-1]))
    figures = {
        "kills": dict(killer.done),
        "kills_in_all": sum(killer.done.values()),
        "rounds": rounds,
        "seconds": round(time.monotonic() - began),
    }
    write_results("ray_kills", figures)


if __name__ == "__main__":
    main()
