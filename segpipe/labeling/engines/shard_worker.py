"""A worker that labels shards it is given, for as long as it holds a lease; it knows nothing of Ray.

Its methods are called from several threads at once, and take and give JSON (messages.py). All shards go
through one pipeline that never ends, so that the device is not idle between them.
"""

from __future__ import annotations

import json
import logging
import platform
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from time import perf_counter

from packaging.version import Version

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.errors import ModelError, RunError, SegpipeError, StorageError
from segpipe.labeling.batch import planned_batches
from segpipe.labeling.engines.local import label_batches, shard_of, threads_of
from segpipe.labeling.engines.messages import (
    Alive,
    Ready,
    Shard,
    Task,
    decode_grant,
    decode_shard,
    decode_task,
    encode,
)
from segpipe.labeling.items import ImageLabeler, Outcome, PlannedImage, Threads, one_line
from segpipe.labeling.lease import Lease, Moment
from segpipe.labeling.place import target_of
from segpipe.labeling.steps import BatchLimit
from segpipe.logs import log_ids
from segpipe.manifests.run_files import plan_uri

_PACKAGES = ("segpipe", "torch", "ray")
_MOST_SHARDS = 4
_MOST_LINES = 1000
Load = Callable[[str, str | None, str | None, str], ImageLabeler]


def versions() -> dict[str, str]:
    """What must be the same wherever shards of one run are labelled; without the builds of one version."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        try:
            found[package] = Version(version(package)).public
        except PackageNotFoundError:
            continue
    return found


@dataclass
class _Open:
    """A shard in work; ended: it is finished, or will not be."""

    n_images: int
    outcomes: list[Outcome] = field(default_factory=list)
    answer: str | None = None
    ended: Event = field(default_factory=Event)


class ShardWorker:
    """Loads a model at `start`; afterwards `label` may be called for several shards at once."""

    def __init__(self) -> None:
        self._lease = Lease()
        self._queue: SimpleQueue[Shard | None] = SimpleQueue()
        self._open: dict[int, _Open] = {}
        self._changing = Lock()
        self._failure: str | None = None
        self._done = 0
        self._since = perf_counter()
        self._threads = Threads(1, 1)
        self._said = _Said()
        self._pipeline: Thread | None = None

    def start(self, text: str, load: Load) -> str:
        """Load the model of a Task: {"ready": Ready}, or {"refused": why} where it may not label."""
        logging.getLogger("segpipe").addHandler(self._said)
        logging.getLogger("segpipe").setLevel(logging.INFO)
        try:
            task = decode_task(text)
            _require_fit(task)
            labeler = load(task.url, task.digest, task.policy, task.device)
            if labeler.model_id != task.place.model_id:
                raise ModelError(f"{task.url} is model {labeler.model_id}, not {task.place.model_id}")
        except StorageError as error:  # the next one to start may have more luck
            return json.dumps({"failed": one_line(error)})
        except SegpipeError as error:
            return json.dumps({"refused": one_line(error)})
        settings = LabelSettings.model_validate_json(task.settings)
        self._threads = threads_of(labeler, settings)
        self._pipeline = Thread(target=self._work, args=(task, labeler, settings), daemon=True)
        self._pipeline.start()
        return json.dumps({"ready": asdict(Ready(Moment.now(), _depth(labeler, settings), self._threads))})

    def label(self, text: str) -> str:
        """Label a Shard: {"finished": FinishedShard}, or {"failed": why} once this worker labels no more."""
        shard = decode_shard(text)
        open_shard = _Open(len(shard.images))
        with self._changing:
            if self._failure is not None:
                return json.dumps({"failed": self._failure})
            self._open[shard.number] = open_shard
        self._queue.put(shard)
        open_shard.ended.wait()
        return open_shard.answer or json.dumps({"failed": self._failure})

    def extend(self, text: str) -> str:
        """Take a Grant; the answer, Alive, holds the moment that the next one counts from."""
        grant = decode_grant(text)
        self._lease.grant(grant.since, grant.seconds)
        return encode(Alive(Moment.now(), self._done, self._said.take()))

    def stop(self) -> str:
        """Write nothing more; answered when the last request has ended."""
        self._lease.end()
        self._queue.put(None)
        if self._pipeline is not None:
            self._pipeline.join()
        return "{}"

    def _work(self, task: Task, labeler: ImageLabeler, settings: LabelSettings) -> None:
        target = target_of(task.place, self._lease.require)
        why = "it was told to stop"
        try:
            with (
                log_ids(run_id=task.place.run_id),
                closing(label_batches(self._batches, labeler, target, settings)) as outcomes,
            ):
                for outcome in outcomes:
                    self._take(outcome)
        except BaseException as error:  # of whatever kind, who waits for a shard is to know
            why = one_line(error) if isinstance(error, Exception) else repr(error)
        finally:
            self._end(why)

    def _batches(self, limit: BatchLimit) -> Iterator[list[PlannedImage] | None]:
        while True:
            try:
                # Nobody adds results while this waits for a shard, so it waits only when none are to come.
                shard = self._queue.get(block=not self._open)
            except Empty:
                yield None
                continue
            if shard is None:
                return
            yield from planned_batches(shard.images, limit)

    def _take(self, outcome: Outcome) -> None:
        self._done += 1
        shard = outcome.row.shard
        in_work = self._open[shard]
        in_work.outcomes.append(outcome)
        if len(in_work.outcomes) == in_work.n_images:
            seconds, self._since = perf_counter() - self._since, perf_counter()
            finished = shard_of(shard, in_work.outcomes, seconds, self._threads)
            in_work.answer = f'{{"finished": {encode(finished)}}}'
            with self._changing:
                del self._open[shard]
            in_work.ended.set()

    def _end(self, why: str) -> None:
        with self._changing:
            self._failure = why
            left = list(self._open.values())
        for in_work in left:
            in_work.ended.set()


class _Said(logging.Handler):
    """Keeps what was logged until it is taken: a worker's stderr is read by nobody."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[tuple[int, str]] = deque(maxlen=_MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def take(self) -> tuple[tuple[int, str], ...]:
        """The lines since it was last asked: level and message."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return tuple(lines)


def _depth(labeler: ImageLabeler, settings: LabelSettings) -> int:
    """How many shards it takes to keep the pipeline full: the next, and those that it reads ahead into."""
    ahead = 2 * threads_of(labeler, settings).moving * settings.batch_images
    return min(_MOST_SHARDS, 1 + -(-ahead // settings.shard_images))


def _require_fit(task: Task) -> None:
    """Raise RunError where another version runs, or OUTPUT is another place than the driver's."""
    here = versions()
    for package, wanted in task.versions.items():
        if here.get(package) != wanted:
            raise RunError(
                f"node {platform.node()} has {package} {here.get(package, '(none)')}, the driver {wanted}: "
                "install the same versions on every node"
            )
    if not storage.exists(plan_uri(task.place.output, task.place.run_id)):
        raise RunError(
            f"node {platform.node()} does not see the run's plan in {task.place.output}: give an OUTPUT that "
            "all nodes share, such as a bucket"
        )
