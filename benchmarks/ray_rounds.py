"""A run of `label --engine ray` on two Ray nodes and a real S3 server, whose parts a kill series harms.

The labeler loads no torch, so that a kill meets work within seconds, and its masks tell which process made
them, so that one which is written late shows. Rows, masks and digests are looked at without segpipe too.
"""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests/support"
sys.path.insert(0, str(SUPPORT))
CLAIM_SECONDS = 12  # Ray's start holds Python's lock for seconds on a busy machine
_LONGEST_WAIT_SECONDS = 900.0
_SLOW_ORDERS = 16  # of 0.05 s each for two images, so that a kill meets work
_MOST_STARTS = 5
_STORE_BYTES = 100 * 2**20
DRIVER = """
import logging
import sys
from pathlib import Path
from brightness import Brightness, load_marked
from segpipe.confidence.policy import from_json
from segpipe.config import LabelSettings
from segpipe.errors import SegpipeError
from segpipe.labeling.engines.work import ServedModel
from segpipe.labeling.run import label_source
from segpipe.stopping import StoppedError, stop_on_signals
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
source, output, orders, policy, settings = sys.argv[1:]
try:
    with stop_on_signals(lambda status: None):
        settings = LabelSettings.model_validate_json(settings)
        labeler = Brightness(from_json(policy) if policy else None, orders)
        label_source(source, output, labeler, settings, "r1", served=ServedModel(orders, load_marked))
except StoppedError as stop:
    sys.exit(stop.status)
except SegpipeError as error:
    print(error, flush=True)
    sys.exit(1)
"""


@dataclass(frozen=True)
class End:
    """A driver's end: its exit status and what it said to people."""

    status: int
    said: str

    @property
    def is_clear(self) -> bool:
        """Whether it is done, was ended by a signal of ours, or says in one line why not."""
        told = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        lines = len(self.said.splitlines())
        return (self.status in told and lines == 0) or (self.status == 1 and lines == 1)


@dataclass
class Driver:
    """A driver's process and where its words go."""

    process: subprocess.Popen[bytes]
    said: Path

    def has_ended_by(self, seconds: float) -> bool:
        """Whether it ends by itself in that time; else it is killed, which its end tells."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.said.write_text(f"did not end within {seconds:g} s")
            return False
        return True

    def end(self) -> End | None:
        """None while it lives."""
        status = self.process.poll()
        return None if status is None else End(status, self.said.read_text().strip())


@dataclass
class Nodes:
    """A head, where the driver runs, and another node; each has room for two workers."""

    cluster: Any
    others: list[Any]

    @classmethod
    def start(cls) -> Nodes:
        """Two nodes; the head misses a silent one sooner than Ray's own half a minute."""
        from ray.cluster_utils import Cluster

        noticing = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 1000,
            "health_check_timeout_ms": 3000,
            "health_check_failure_threshold": 4,
        }
        head = {"num_cpus": 2, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        head |= {"_system_config": noticing}
        cluster = _patiently(lambda: Cluster(True, head_node_args=head, shutdown_at_exit=False))
        nodes = cls(cluster, [])
        nodes.add()
        return nodes

    def add(self) -> None:
        """One more node beside the head."""
        options = {"num_cpus": 2, "object_store_memory": _STORE_BYTES}
        self.others.append(_patiently(lambda: self.cluster.add_node(**options)))

    def stop(self) -> None:
        """End all, also those that are stopped or dead already."""
        for node in self.cluster.list_all_nodes():
            for process in processes_of(node):
                send(process, signal.SIGCONT)
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _patiently(start: Callable[[], Any]) -> Any:
    """What start gives, tried again: Ray gives a node 30 s, which is too little on a busy machine."""
    for _ in range(_MOST_STARTS - 1):
        try:
            return start()
        except Exception as error:  # Ray's own is one
            print(f"a node did not start: {error}")
    return start()


def processes_of(node: Any, kind: str | None = None) -> list[int]:
    """The process ids of a node's programs, or of those of one kind, `raylet` or `gcs_server`."""
    kinds = node.all_processes if kind is None else [kind]
    return [info.process.pid for name in kinds for info in node.all_processes.get(name, [])]


@dataclass
class Round:
    """A run that is harmed, and resumed until it is done."""

    bucket: Any
    nodes: Nodes
    proxy: Any
    server: int
    folder: Path
    shard_images: int
    policy: str = ""
    driver: Driver | None = None
    ends: list[End] = field(default_factory=list)
    standing_still: list[Driver] = field(default_factory=list)
    to_thaw: list[tuple[int, float]] = field(default_factory=list)
    drivers: int = 0

    @property
    def output(self) -> str:
        return f"s3://{self.bucket.name}/labels"

    def order(self, *names: str) -> None:
        """Tell workers to misbehave (tests/support/brightness.py)."""
        for name in names:
            (self.folder / name).touch()

    def start(self) -> None:
        """A driver, for the first time or again."""
        from segpipe.config import LabelSettings

        settings = LabelSettings(
            shard_images=self.shard_images,
            batch_images=2,
            fetch_threads=2,
            claim_seconds=CLAIM_SECONDS,
            engine="ray",
            workers="3",
        )
        self.drivers += 1
        said, log = (self.folder / f"driver-{self.drivers}.{kind}" for kind in ("said", "log"))
        arguments = [self.bucket.source, self.output, str(self.folder), self.policy]
        address = {"RAY_ADDRESS": self.nodes.cluster.address}
        with said.open("wb") as out, log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, *arguments, settings.model_dump_json()],
                env=os.environ | address,
                stdout=out,
                stderr=errors,
            )
        self.driver = Driver(process, said)

    def is_over(self) -> bool:
        """Whether the run is done; a driver that has ended otherwise is started again."""
        assert self.driver is not None
        self._thaw()
        end = self.driver.end()
        if end is None:
            return False
        self.ends.append(end)
        if end.status != 0:
            self.start()
        return end.status == 0

    def wait(self, reached: Callable[[], object], seconds: float = _LONGEST_WAIT_SECONDS) -> bool:
        """Whether it came to that before the run was done, or so many seconds had passed."""
        deadline = time.monotonic() + seconds
        while not reached():
            if self.is_done() or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def is_done(self) -> bool:
        """As is_over, and stays true."""
        return bool(self.ends and self.ends[-1].status == 0) or self.is_over()

    def finish(self) -> None:
        """Let the run come to its end as fast as it can, and those that stand still learn of it."""
        from s3_proxy import pass_on

        self.proxy.decide = lambda _: pass_on
        for path in self.folder.glob("slow-*"):
            path.unlink()
        self.wait(lambda: False)
        for driver in self.standing_still:
            driver.process.send_signal(signal.SIGCONT)
            driver.has_ended_by(_LONGEST_WAIT_SECONDS)
            self.ends.append(driver.end() or End(-1, ""))

    def workers(self) -> list[int]:
        """The processes that have begun to label and live."""
        told = [int(path.name.removeprefix("worker-")) for path in self.folder.glob("worker-*")]
        return [process for process in told if Path(f"/proc/{process}").exists()]

    def parts(self) -> int:
        """How many shards are committed."""
        return len(self.bucket.keys("labels/manifests/"))

    def goes_on(self) -> bool:
        """Wait for two more parts, which says that the run has got over whatever it was."""
        before = self.parts()
        return self.wait(lambda: self.parts() > before + 1)

    def freeze(self, process: int, seconds: float) -> bool:
        """Stop a process for so long."""
        self.to_thaw.append((process, time.monotonic() + seconds))
        return send(process, signal.SIGSTOP)

    def _thaw(self) -> None:
        now = time.monotonic()
        for process, until in [one for one in self.to_thaw if one[1] <= now]:
            self.to_thaw.remove((process, until))
            send(process, signal.SIGCONT)

    def findings(self) -> dict[str, Any]:
        """Raises AssertionError for a row lost or doubled, or a mask that is not what its row says."""
        from segpipe.config import VerifySettings
        from segpipe.manifests.verification import verify

        rows = self.bucket.assert_finished_facts("labels")
        images = [f"s3://{self.bucket.name}/{key}" for key in self.bucket.images]
        assert sorted(row["image_uri"] for row in rows) == images, f"{len(rows)} rows, {len(images)} images"
        found = verify(self.output, VerifySettings())
        assert found.findings == {}, found
        failed = sum(row["decision"] == "failed" for row in rows)
        return {"rows": len(rows), "failed": failed, "parts": found.parts, "masks_read": found.masks_read}


def send(process: int, number: int) -> bool:
    """Whether there was such a process to send a signal to."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def new_bucket(endpoint: str, images: int) -> Any:
    """A bucket of so many small pictures, each another."""
    from s3_bucket import Bucket

    client, name = boto3.client("s3", endpoint_url=endpoint), f"kills-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    keys = [f"raw/{number:05d}.png" for number in range(images)]
    for number, key in enumerate(keys):
        client.put_object(Bucket=name, Key=key, Body=_picture(number))
    return Bucket(client, name, keys)


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def new_round(server: int, folder: Path, images: int, shard_images: int, policy: str = "") -> Iterator[Round]:
    """A run that has not begun, on nodes of its own."""
    from s3_proxy import S3Proxy

    folder.mkdir()
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    proxy = S3Proxy(endpoint)
    os.environ["AWS_ENDPOINT_URL"] = proxy.url  # what nodes, and so workers, are started with
    bucket, nodes = new_bucket(endpoint, images), Nodes.start()
    round_ = Round(bucket, nodes, proxy, server, folder, shard_images, policy)
    round_.order(*(f"slow-{number}" for number in range(_SLOW_ORDERS)))
    try:
        yield round_
    finally:
        for driver in [round_.driver, *round_.standing_still]:
            if driver is not None and driver.process.poll() is None:
                driver.process.kill()
                driver.process.wait()
        round_.nodes.stop()
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        proxy.close()
