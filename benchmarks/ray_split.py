"""Cut a worker's node off from the driver's while `label --engine ray` runs: nothing lost, nothing doubled.

The second of two Ray nodes has a network of its own (`ip netns`, for root on Linux) with a wire to the first
node and another to a real S3 server. When the first wire is cut, packets vanish without an answer and the
workers there reach the storage as before: but for their leases they would write on beside those that do their
shards again.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import psutil

from benchmarks.machine import write_results
from benchmarks.ray_rounds import CLAIM_SECONDS, ROOT, SUPPORT, Round, new_bucket, send
from benchmarks.s3_server import s3_server

AWAY = "segpipe-split"
CLUSTER, STORAGE = "10.199.1", "10.199.2"
NOBODY = "02:00:00:00:00:99"
HEAD_PORT = 6411
IMAGES, SHARD_IMAGES = 480, 4
SECONDS = (CLAIM_SECONDS / 4, 2.0 * CLAIM_SECONDS)  # a lease is half a claim
NOTICING = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}
_THERE = ["ip", "netns", "exec", AWAY]


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def wires() -> Iterator[None]:
    """A network of its own for a node, and two wires to it; each has the address .1 here and .2 there."""
    _run("ip", "netns", "add", AWAY)
    try:
        _run(*_THERE, "ip", "link", "set", "lo", "up")
        for name, network in (("sgp-c", CLUSTER), ("sgp-s", STORAGE)):
            _run("ip", "link", "add", f"{name}1", "type", "veth", "peer", f"{name}2", "netns", AWAY)
            _run("ip", "address", "add", f"{network}.1/24", "dev", f"{name}1")
            _run("ip", "link", "set", f"{name}1", "up")
            _run(*_THERE, "ip", "address", "add", f"{network}.2/24", "dev", f"{name}2")
            _run(*_THERE, "ip", "link", "set", f"{name}2", "up")
        yield
    finally:
        _run("ip", "netns", "delete", AWAY)  # the wires go with it


def cut() -> None:
    """Have every packet of the cluster go to nobody, in both directions."""
    _run("ip", "neigh", "replace", f"{CLUSTER}.2", "lladdr", NOBODY, "dev", "sgp-c1", "nud", "permanent")
    there = ["ip", "neigh", "replace", f"{CLUSTER}.1", "lladdr", NOBODY, "dev", "sgp-c2", "nud", "permanent"]
    _run(*_THERE, *there)


def mend() -> None:
    """Let them arrive again."""
    _run("ip", "neigh", "delete", f"{CLUSTER}.2", "dev", "sgp-c1")
    _run(*_THERE, "ip", "neigh", "delete", f"{CLUSTER}.1", "dev", "sgp-c2")


@dataclass
class Nodes:
    """A head, where the driver runs, and the node behind the wires; each has room for two workers."""

    processes: list[subprocess.Popen[bytes]]
    cluster: Any

    def stop(self) -> None:
        """End all."""
        for process in self.processes:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                send(one.pid, signal.SIGKILL)
            process.wait()
        for left in _processes_there():
            send(left, signal.SIGKILL)


def _processes_there() -> list[int]:
    return [int(process) for process in _run("ip", "netns", "pids", AWAY).split()]


def start_nodes(folder: Path) -> Nodes:
    """Both nodes; the other one keeps its files in this folder, for Ray takes two on one machine for one."""
    address, ray = f"{CLUSTER}.1:{HEAD_PORT}", str(Path(sys.executable).with_name("ray"))
    usual = ["--num-cpus=2", f"--object-store-memory={100 * 2**20}", "--block", "--disable-usage-stats"]
    head = [ray, "start", "--head", f"--node-ip-address={CLUSTER}.1", f"--port={HEAD_PORT}"]
    head += ["--include-dashboard=false", f"--system-config={json.dumps(NOTICING)}"]
    own = f'mkdir -p /tmp/ray && mount --bind "{folder}" /tmp/ray && exec "$@"'
    away = [*_THERE, "sh", "-c", own, "sh", ray, "start", f"--address={address}"]
    away += [f"--node-ip-address={CLUSTER}.2"]
    nodes = Nodes([_start([*head, *usual])], SimpleNamespace(address=address))
    while subprocess.run([ray, "health-check", f"--address={address}"], capture_output=True).returncode:
        time.sleep(0.5)
    nodes.processes.append(_start([*away, *usual]))
    return nodes


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def cut_for(target: Round, seconds: float) -> int:
    """How many workers were cut off from the driver, for so many seconds, while they labelled."""
    if not target.wait(lambda: set(target.workers()) & set(_processes_there())) or not target.goes_on():
        return 0
    workers = len(set(target.workers()) & set(_processes_there()))
    cut()
    try:
        target.wait(lambda: False, seconds)
    finally:
        mend()
    return workers


def play(server: int, folder: Path, seconds: float) -> dict[str, Any]:
    """What was found after a run whose second node was cut off for so many seconds."""
    for name in ("node", "orders"):
        (folder / name).mkdir(parents=True)
    nodes = start_nodes(folder / "node")
    try:
        bucket = new_bucket(os.environ["AWS_ENDPOINT_URL"], IMAGES)
        target = Round(bucket, nodes, SimpleNamespace(), server, folder / "orders", SHARD_IMAGES)  # type: ignore[arg-type]
        target.order(*(f"slow-{number}" for number in range(16)))
        target.start()
        workers = cut_for(target, seconds)
        target.finish()
        found = target.findings()
    finally:
        nodes.stop()
    lost = (folder / "orders" / "driver-1.log").read_text().count("lost worker")
    ends = [{"status": end.status, "said": end.said} for end in target.ends]
    return found | {"seconds": seconds, "workers_cut_off": workers, "workers_lost": lost, "driver_ends": ends}


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the drivers' logs here.")
def main(folder: Path | None) -> None:
    """Cut the wire for less than a lease, and for two claims; write what was found."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    with tempfile.TemporaryDirectory() as name, wires(), s3_server("atomic moto", f"{STORAGE}.1") as server:
        assert server is not None
        cuts = [play(server, Path(folder or name, f"{seconds:g}"), seconds) for seconds in SECONDS]
    for found in cuts:
        click.echo(json.dumps(found))
    write_results("ray_split", {"claim_seconds": CLAIM_SECONDS, "cuts": cuts})


if __name__ == "__main__":
    main()
