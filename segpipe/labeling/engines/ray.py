"""The shards of a run labelled by workers that Ray runs: plain actors, on this machine or on a cluster.

Ray starts the workers and carries messages; what is done again is for dispatch.py to decide. This is the only
importer of ray.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from segpipe.concurrency import own_cores
from segpipe.confidence.policy import to_json
from segpipe.errors import RunError
from segpipe.labeling.engines.dispatch import (
    Answered,
    Dispatcher,
    Event,
    Finished,
    Gone,
    Refused,
    Rules,
    Started,
)
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
from segpipe.labeling.engines.work import HeldClaim, Work
from segpipe.labeling.items import FinishedShard, PlannedImage, one_line

if TYPE_CHECKING:
    from segpipe.config import LabelSettings

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 100 * 2**20
_PATIENCE_SECONDS = 600.0
_LONGEST_START_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_LOOK_SECONDS = 2.0
_SILENT_SECONDS = 20.0  # a head that is replaced has this long; Ray ends the process after 60 s
_STOP_SECONDS = 2.5  # stopping.py gives all of a run 5 s
_STEP_SECONDS = 0.25
_LEASES_PER_CLAIM = 2
_SHARDS, _LEASES = "shards", "leases"
_INSTALL = "--engine ray needs Ray: pip install 'segpipe[ray]', or take --engine local"


def require_installed() -> None:
    """Raise RunError unless Ray can be imported."""
    if find_spec("ray") is None:
        raise RunError(_INSTALL)


def finished_shards(work: Work) -> Generator[FinishedShard, None, None]:
    """Label the shards in workers; the first comes first, the others as they are finished.

    Raises RunError when a shard was lost three times, no worker is left, the claim is lost, or there is no
    cluster to join.
    """
    shards = _shards(work.images)
    first = next(shards, None)
    if first is None:
        return
    with _cluster(work) as cluster:
        fleet = RayFleet(cluster)
        rules = Rules(cluster.workers, work.settings.claim_seconds / _LEASES_PER_CLAIM, _PATIENCE_SECONDS)
        dispatcher = Dispatcher(_chained(first, shards), fleet, work.claim, rules)
        running = _Running(dispatcher, 2 * cluster.workers)
        try:
            yield from _timed(running.shards(work.advance), dispatcher, cluster.workers)
        finally:
            _end(running, fleet, dispatcher, work.claim)


def _end(running: _Running, fleet: RayFleet, dispatcher: Dispatcher, claim: HeldClaim) -> None:
    """End the workers; where one may still write, also where this is cut short, the claim has to expire."""
    is_quiet = False
    try:
        running.stop()
        is_quiet = fleet.stop(_STOP_SECONDS) and not dispatcher.may_have_writers
    finally:
        if not is_quiet:
            claim.let_expire()


def _shards(images: Iterable[PlannedImage]) -> Iterator[Shard]:
    for number, group in groupby(images, key=lambda image: image.shard):
        yield Shard(number, tuple(group))


def _chained(first: Shard, rest: Iterator[Shard]) -> Iterator[Shard]:
    yield first
    yield from rest


def _timed(shards: Iterator[FinishedShard], dispatcher: Dispatcher, workers: int) -> Iterator[FinishedShard]:
    """Each with the run's own seconds: those since the one before, or since the first worker was ready."""
    started = None
    for shard in shards:
        now = time.monotonic()
        started = dispatcher.began_at if started is None else started
        legs = replace(shard.legs, wait=shard.legs.wait / workers)
        yield replace(shard, seconds=now - started, legs=legs)
        started = now


class _Running:
    """The dispatcher in a thread of its own, so that leases are renewed also while a part is committed."""

    def __init__(self, dispatcher: Dispatcher, most_waiting: int) -> None:
        self._dispatcher, self._most_waiting = dispatcher, most_waiting
        self._out: SimpleQueue[FinishedShard | BaseException | None] = SimpleQueue()
        self._over = threading.Event()
        self._stopping = threading.Event()
        # What is logged there names this run too.
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="dispatcher", daemon=True)

    def shards(self, advance: Callable[[int], None]) -> Iterator[FinishedShard]:
        """The finished shards; raises what ends the run."""
        self._thread.start()
        told = 0
        while True:
            item = self._next()
            if (done := self._dispatcher.images_done) > told:
                advance(done - told)
                told = done
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                yield item
            elif self._over.is_set() and self._out.empty():
                return

    def _next(self) -> FinishedShard | BaseException | None:
        """None when for a second only the progress is news."""
        try:
            return self._out.get(timeout=1.0)
        except Empty:
            return None

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._dispatcher.is_over and not self._stopping.is_set():
                room = self._most_waiting - self._out.qsize()
                for shard in self._dispatcher.step(_STEP_SECONDS, room):
                    self._out.put(shard)
            self._over.set()
            self._out.put(None)
        except BaseException as error:  # it belongs to who waits for shards
            self._out.put(error)


@dataclass(frozen=True)
class _Cluster:
    """Ray, connected, what each worker takes, and what it is told."""

    ray: Any
    workers: int
    cpus: float
    gpus: float
    task: Task
    load: Any


@dataclass
class _Lifeline:
    """A program that the driver cannot do without; heard_at: when it last let itself be reached."""

    name: str
    host: str
    port: int
    heard_at: float

    def require(self) -> None:
        """Raise RunError when nobody has listened there for some time."""
        if _listens(self.host, self.port):
            self.heard_at = time.monotonic()
        elif (silent := time.monotonic() - self.heard_at) > _SILENT_SECONDS:
            raise RunError(
                f"{self.name}, {self.host}:{self.port}, has not answered for {silent:.0f} s: start Ray again "
                "and resume with the same run id"
            )


def _lifelines(ray: Any) -> list[_Lifeline]:
    """The head and this node's raylet: Ray itself ends the process a minute after the one, on the spot, and
    starts no worker without the other."""
    context, now = ray.get_runtime_context(), time.monotonic()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    host, _, port = context.gcs_address.rpartition(":")
    return [
        _Lifeline("the head of the Ray cluster", host, int(port), now),
        _Lifeline("Ray on this node", here["NodeManagerAddress"], here["NodeManagerPort"], now),
    ]


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), _LOOK_SECONDS).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class _Asked:
    """What a worker was asked, to know what its answer means."""

    worker: int
    what: str


class RayFleet:
    """Workers as Ray's actors (dispatch.Fleet)."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._actor_class = cluster.ray.remote(
            max_restarts=0, max_task_retries=0, concurrency_groups={_LEASES: 1, _SHARDS: 4}
        )(ShardWorker)
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, _Asked] = {}
        self._writing: set[int] = set()
        self._started = 0
        self._lifelines, self._looked_at = _lifelines(cluster.ray), time.monotonic()

    def start(self) -> int:
        """Ask for one more worker."""
        self._started += 1
        options = self._actor_class.options(
            num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, scheduling_strategy="SPREAD"
        )
        actor = self._actors[self._started] = options.remote()
        self._ask(self._started, "start", actor.start.remote(encode(self._cluster.task), self._cluster.load))
        return self._started

    def assign(self, worker: int, shard: Shard) -> None:
        """Have a worker label a shard."""
        label = self._actors[worker].label.options(concurrency_group=_SHARDS)
        self._writing.add(worker)
        self._ask(worker, "label", label.remote(encode(shard)))

    def extend(self, worker: int, grant: Grant) -> None:
        """Renew a worker's lease."""
        extend = self._actors[worker].extend.options(concurrency_group=_LEASES)
        self._ask(worker, "extend", extend.remote(encode(grant)))

    def kill(self, worker: int) -> None:
        """Have Ray end a worker, which may take until it can be reached."""
        if actor := self._actors.pop(worker, None):
            self._ray.kill(actor)

    def events(self, seconds: float) -> list[Event]:
        """What has become of what was asked; waits for the first for so long.

        Raises RunError when the cluster is gone.
        """
        self._require_cluster()
        if not self._asked:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        return [self._event(self._asked.pop(reference), reference) for reference in ready]

    def _require_cluster(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        for lifeline in self._lifelines:
            lifeline.require()
        self._looked_at = time.monotonic()

    def stop(self, seconds: float) -> bool:
        """End all workers; whether none can write any more, as each has said itself."""
        from ray.exceptions import RayError

        stopping = [
            self._actors[worker].stop.options(concurrency_group=_LEASES).remote()
            for worker in self._writing & set(self._actors)
        ]
        try:
            said = self._ray.wait(stopping, num_returns=len(stopping), timeout=seconds)[0] if stopping else []
            for worker in list(self._actors):
                self.kill(worker)
            self._ray.get(said)  # of one that is dead, or not to be reached, nothing is known
        except RayError as error:
            logger.warning("the workers could not be told to stop: %s", _last_words(error))
            return False
        return len(said) == len(stopping)

    def _ask(self, worker: int, what: str, reference: Any) -> None:
        self._asked[reference] = _Asked(worker, what)

    def _event(self, asked: _Asked, reference: Any) -> Event:
        from ray.exceptions import RayError

        try:
            answer = self._ray.get(reference)
        except RayError as error:  # also of a process that is dead: what it has sent may still arrive
            return Gone(asked.worker, _last_words(error), has_ended=False)
        return _meaning(asked.worker, asked.what, answer)


def _meaning(worker: int, what: str, answer: str) -> Event:
    if what == "extend":
        return Answered(worker, decode_alive(answer))
    told = json.loads(answer)
    match told:
        case {"ready": ready}:
            return Started(worker, decode_ready(ready))
        case {"refused": why}:
            return Refused(worker, why)
        case {"finished": shard}:
            return Finished(worker, decode_finished(shard))
    return Gone(worker, told["failed"], has_ended=True)  # its requests have been answered


def _last_words(error: Exception) -> str:
    """The line of Ray's many that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("The actor is dead")] or lines[-1:]
    return " ".join(telling)[:300] or one_line(error)


@contextmanager
def _cluster(work: Work) -> Iterator[_Cluster]:
    """Ray as this process has it, or as RAY_ADDRESS says, or started here for the run."""
    require_installed()
    import ray

    if ray.is_initialized():
        yield _sized(ray, work)
        return
    # Ray prints what it thinks of workers that die, and stdout is for results.
    with redirect_stdout(sys.stderr):
        _connect(ray, work.settings, work.claim)
        try:
            yield _sized(ray, work)
        finally:
            ray.shutdown()


def _connect(ray: Any, settings: LabelSettings, claim: HeldClaim) -> None:
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise RunError(
            f"RAY_ADDRESS is {address}: run segpipe on a node of the cluster, with RAY_ADDRESS=HOST:6379"
        )
    if address != "local":
        _require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        cores = max(own_cores(), _asked_cores(settings))
        options |= {"num_cpus": cores, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    # Ray holds Python's lock while it connects, for seconds: meanwhile nobody renews the claim.
    with _same_signals(), claim.standing_still(_LONGEST_START_SECONDS):
        try:
            ray.init(address=address, **options)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise RunError(_no_cluster(address, error)) from error


def _require_answer(address: str) -> None:
    """Raise RunError where nobody listens, for which Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RunError(f"RAY_ADDRESS is {address}, not HOST:PORT: give that of the cluster's head, HOST:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError as error:
        raise RunError(_no_cluster(address, error)) from error


def _no_cluster(address: str, error: Exception) -> str:
    said = one_line(error)[:300]
    if address == "local":
        return f"Ray did not start here ({said}): look at its logs, below /tmp/ray, or take --engine local"
    return (
        f"no Ray cluster at {address} can be joined ({said}): it has to run (ray status), with the same "
        "versions of Ray and Python, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH has to name its token"
    )


@contextmanager
def _same_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and whoever stops a run in order has to have it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except SystemExit as error:  # Ray's own answer to SIGTERM
        handler = before[signal.SIGTERM]
        if error.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _asked_cores(settings: LabelSettings) -> int:
    if settings.workers == "auto":
        return 1
    return math.ceil(int(settings.workers) * (settings.worker_cpus or 1))


def _sized(ray: Any, work: Work) -> _Cluster:
    """The workers that the settings ask for, or that the cluster has room for. Raises RunError."""
    settings, resources = work.settings, ray.cluster_resources()
    gpus = _gpus(settings, resources.get("GPU", 0.0))
    cores = resources.get("CPU", 1.0)
    nodes = sum(node["Alive"] for node in ray.nodes())
    # A node whose every core is busy misses Ray's own heartbeats: one is left free.
    spare = max(1.0, cores - nodes)
    if settings.workers != "auto":
        workers = int(settings.workers)
    elif gpus:
        workers = max(1, int(resources["GPU"] / gpus))
    else:
        workers = max(1, int(spare / (settings.worker_cpus or 1)))
    cpus = settings.worker_cpus or (max(1.0, spare // workers) if gpus else 1.0)
    served = work.served
    assert served is not None, "who chooses this engine says where the model is"
    policy = work.labeler.policy
    task = Task(
        url=served.url,
        digest=work.labeler.digest,
        policy=to_json(policy) if policy else None,
        device="cuda" if gpus else "cpu",
        settings=settings.model_dump_json(),
        place=work.place,
        versions=versions(),
    )
    logger.info("labelling with %d workers, of %g cores and %g GPUs each", workers, cpus, gpus)
    return _Cluster(ray, workers, cpus, gpus, task, served.load)


def _gpus(settings: LabelSettings, there: float) -> float:
    """Of each worker."""
    asked = settings.worker_gpus
    if asked is None:
        asked = 1.0 if settings.device == "cuda" or (settings.device == "auto" and there) else 0.0
    if asked > there:
        raise RunError(
            f"a worker is to have {asked:g} GPUs and the cluster has {there:g}: add nodes with GPUs, or "
            "label with --device cpu"
        )
    return asked
