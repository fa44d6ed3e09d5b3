"""Harm `label --engine ray` in every way known: nothing lost, nothing doubled, every mask as its row says.

Each kind of harm has a run of its own, with a kill or more, on two Ray nodes on loopback and a real S3 server
(ray_rounds.py). `--only WORDS` picks the kinds whose names hold them; the results of the others are kept.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.machine import RESULTS, write_results
from benchmarks.ray_rounds import CLAIM_SECONDS, ROOT, SUPPORT, Nodes, Round, new_round, processes_of, send
from benchmarks.s3_server import s3_server

LATE_SECONDS = 1.5
CLAIM, PLAN, RECORD = r"^PUT .*/claims/", r"^PUT .*/plan\.parquet", r"^PUT .*/run\.json"
READ, MASK, PART = r"^GET .*/raw/", r"^PUT .*/masks/", r"^PUT .*/manifests/"
MASK_OF_FIRST_SHARD = r"^PUT .*/masks/.*0000[0-3]\.png"
TOTALS = r'^PUT .*/run\.json[^{]* \{(.|\n)*"totals"'
RELEASE = r'^PUT .*/claims/.*"released": true'
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}:[0-9]+")
Harm = Callable[[Round], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of harm: what is done, one after the other; each says whether there was somebody to do it to.

    drifted: whether a policy decides, from whose scores those of the run have drifted.
    """

    name: str
    harms: list[Harm]
    drifted: bool = False
    images: int = 160
    shard_images: int = 4


@dataclass
class Sniper:
    """Kills who sends the next request of a kind: before the server hears of it, after it has done it, or at
    once and the request arrives late."""

    kind: str
    moment: str
    struck: threading.Event = field(default_factory=threading.Event)
    _aimed: bool = False

    def __call__(self, request: Any) -> Callable[[Any], None]:
        from s3_proxy import pass_on

        if self._aimed or not request.matches(self.kind):
            return pass_on
        self._aimed = True
        return self._strike

    def _strike(self, exchange: Any) -> None:
        sender = _sender(exchange.handler.client_address[1])
        if self.moment == "after":
            exchange.forward()
        send(sender, signal.SIGKILL)
        self.struck.set()
        if self.moment == "late":
            time.sleep(LATE_SECONDS)
            exchange.forward()
        exchange.handler.close_connection = True


def _sender(port: int) -> int:
    """The process whose end of a connection on this machine has that port."""
    connections = psutil.net_connections("tcp")
    return next(one.pid for one in connections if one.laddr.port == port and one.pid)


def at(kind: str, moment: str) -> Harm:
    """Kill the process that comes to this step of the commit."""

    def strike(target: Round) -> bool:
        sniper = target.proxy.decide = Sniper(kind, moment)
        if target.driver is None:
            target.start()
        return target.wait(sniper.struck.is_set)

    return strike


def worker(number: int) -> Harm:
    """Send a signal to one worker."""
    return lambda target: _busy(target) and send(random.choice(target.workers()), number)


def freeze_worker(target: Round) -> bool:
    """Stop a worker for longer than any lease."""
    if not _busy(target):
        return False
    process = random.choice(target.workers())
    return target.freeze(process, 2 * CLAIM_SECONDS) and target.wait(lambda: not target.to_thaw)


def driver(number: int) -> Harm:
    """Send a signal to the driver, which is resumed."""

    def strike(target: Round) -> bool:
        if not _busy(target):
            return False
        assert target.driver is not None
        target.driver.process.send_signal(number)
        target.driver.process.wait()
        return True

    return strike


def freeze_driver(target: Round) -> bool:
    """Stop the driver and resume the run by another; the first goes on when all is done."""
    if not _busy(target):
        return False
    assert target.driver is not None
    target.driver.process.send_signal(signal.SIGSTOP)
    target.standing_still.append(target.driver)
    target.start()
    return True


def kill_raylet(target: Round) -> bool:
    """Kill the raylet of the node that is not the head, and replace the node."""
    if not _busy(target):
        return False
    for process in processes_of(target.nodes.others.pop(), "raylet"):
        send(process, signal.SIGKILL)
    target.nodes.add()
    return True


def freeze_raylet(target: Round) -> bool:
    """Stop that raylet until the cluster takes its node for dead, replace it, and let the first one go on."""
    if not _busy(target):
        return False
    node = target.nodes.others.pop()
    for process in processes_of(node, "raylet"):
        target.freeze(process, 3 * CLAIM_SECONDS)
    target.nodes.add()
    return target.wait(lambda: not target.to_thaw)


def kill_head(kinds: tuple[str, ...]) -> Harm:
    """Kill these programs of the head; once the driver has ended, resume on a new cluster."""

    def strike(target: Round) -> bool:
        if not _busy(target):
            return False
        assert target.driver is not None
        for kind in kinds:
            for process in processes_of(target.nodes.cluster.head_node, kind):
                send(process, signal.SIGKILL)
        target.driver.has_ended_by(180)
        target.nodes.stop()
        target.nodes = Nodes.start()
        return True

    return strike


def server_silent(seconds: float) -> Harm:
    """Stop the S3 server and let it go on."""

    def strike(target: Round) -> bool:
        is_busy = _busy(target)
        send(target.server, signal.SIGSTOP)
        time.sleep(seconds)
        return send(target.server, signal.SIGCONT) and is_busy

    return strike


def server_gone(seconds: float) -> Harm:
    """Break off every connection to the S3 server for a while."""

    def strike(target: Round) -> bool:
        from s3_proxy import pass_on, reset

        is_busy = _busy(target)
        target.proxy.decide = lambda _: reset
        time.sleep(seconds)
        target.proxy.decide = lambda _: pass_on
        return is_busy

    return strike


def broken_worker(target: Round) -> bool:
    """Have a worker fail at all it is given from now on."""
    if not _busy(target):
        return False
    names = {path.name for path in target.folder.glob("taken-broken-*")}
    target.order(f"broken-{len(names)}")
    return target.wait(lambda: {path.name for path in target.folder.glob("taken-broken-*")} > names)


def _busy(target: Round) -> bool:
    """Start the run, or let it get over the harm before; then wait for workers at work."""
    from s3_proxy import pass_on

    target.proxy.decide = lambda _: pass_on
    if target.driver is None:
        target.start()
    return target.goes_on() and target.wait(target.workers)


KINDS = [
    Kind("worker killed", [worker(signal.SIGKILL)] * 5),
    Kind("worker killed at the read of an image", [at(READ, "before"), at(READ, "after")]),
    Kind(
        "worker killed at a mask's upload", [at(MASK, moment) for moment in ("before", "after", "late")] * 2
    ),
    Kind(
        "worker killed at the gate shard",
        [at(MASK_OF_FIRST_SHARD, "before"), at(MASK_OF_FIRST_SHARD, "after")],
    ),
    Kind(
        "drift alarm: worker killed at the gate shard, driver killed at the verdict's part and later",
        [at(MASK_OF_FIRST_SHARD, "after"), at(PART, "before"), at(PART, "after"), worker(signal.SIGKILL)],
        drifted=True,
        shard_images=12,  # so few scores do for a verdict
    ),
    Kind("worker frozen, thawed later", [freeze_worker] * 2, images=960),
    Kind("worker that always fails", [broken_worker] * 3),
    Kind(
        "driver killed before its run has a plan",
        [at(CLAIM, "before"), at(CLAIM, "after"), at(PLAN, "before"), at(PLAN, "late"), at(RECORD, "after")],
    ),
    Kind("driver killed at a part's upload", [at(PART, moment) for moment in ("before", "after", "late")]),
    Kind("driver killed at the end", [at(TOTALS, "before"), at(TOTALS, "after"), at(RELEASE, "before")]),
    Kind("driver killed", [driver(signal.SIGKILL)] * 2),
    Kind("driver told to stop", [driver(signal.SIGTERM)] * 3),
    Kind("driver frozen while another resumes, thawed at the end", [freeze_driver]),
    Kind("raylet killed, node replaced", [kill_raylet] * 2),
    Kind("raylet frozen until its node counts as dead, thawed", [freeze_raylet] * 2, images=960),
    Kind("head's GCS killed", [kill_head(("gcs_server",))], images=480),
    Kind("head's raylet killed", [kill_head(("raylet",))], images=480),
    Kind("head killed", [kill_head(("gcs_server", "raylet"))], images=480),
    Kind("storage silent for 3 s", [server_silent(3)] * 2),
    Kind("storage silent for longer than the claim", [server_silent(2 * CLAIM_SECONDS)]),
    Kind("storage unreachable for 3 s", [server_gone(3)] * 2),
    Kind("storage unreachable for longer than the claim", [server_gone(2 * CLAIM_SECONDS)]),
]


def _drifted_policy() -> str:
    import numpy as np
    from brightness import MODEL_ID

    from segpipe.confidence.certify import Asked, BadFraction, Measured, Origin, make_policy
    from segpipe.confidence.policy import to_json

    scores, made_at = np.linspace(2.0, 3.0, 200), "2026-11-23T00:00:00+00:00"
    asked = Asked(BadFraction(0.5, 0.1), 0.9, candidate_thresholds=[2.0])
    policy = make_policy(Measured(scores, np.ones(200)), asked, Origin(MODEL_ID, "f" * 64, made_at))
    return to_json(policy)


def _play(kind: Kind, server: int, folder: Path) -> dict[str, Any]:
    """What was found after a run with this harm."""
    began = time.monotonic()
    policy = _drifted_policy() if kind.drifted else ""
    with new_round(server, folder, kind.images, kind.shard_images, policy) as target:
        done = sum(harm(target) for harm in kind.harms)
        target.finish()
        found = target.findings()
        if kind.drifted:
            reasons = {row["reason"] for row in target.bucket.rows("labels")}
            assert reasons == {"drift"}, reasons
    ends = [asdict(end) | {"said": _ADDRESS.sub("HOST:PORT", end.said)} for end in target.ends]
    unclear = [end for end in target.ends if not end.is_clear]
    return found | {
        "harms": done,
        "driver_ends": ends,
        "unclear_ends": len(unclear),
        "seconds": round(time.monotonic() - began),
    }


def _keep(name: str, found: dict[str, Any]) -> None:
    """Put a kind's result among those of the others."""
    path = RESULTS / "ray_kills.json"
    kept = json.loads(path.read_text())["kinds"] if path.exists() else {}
    kinds = kept | {name: {"date": datetime.now(UTC).date().isoformat()} | found}
    in_order = {kind.name: kinds[kind.name] for kind in KINDS if kind.name in kinds}
    in_all = sum(one["harms"] for one in in_order.values())
    write_results("ray_kills", {"harms_in_all": in_all, "kinds": in_order})


@click.command()
@click.option("--only", multiple=True, help="Words of the names of kinds; several times: any of them.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the drivers' logs here.")
def main(only: tuple[str, ...], folder: Path | None) -> None:
    """Do each kind of harm to a run of its own, and write what was found."""
    random.seed(0)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    chosen = [kind for kind in KINDS if not only or any(words in kind.name for words in only)]
    with tempfile.TemporaryDirectory() as name, s3_server("atomic moto") as server:
        assert server is not None
        for number, kind in enumerate(chosen):
            found = _play(kind, server, Path(folder or name, str(number)))
            click.echo(f"{kind.name}: {json.dumps(found)}")
            _keep(kind.name, found)  # after each, for all of them take long


if __name__ == "__main__":
    main()
