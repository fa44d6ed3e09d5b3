"""Who labels which shard: hands shards to workers, renews their leases, and has lost shards done again.

Two attempts at a shard write to the same mask keys, and their bytes may differ. So another worker gets a
shard only once the first one says that it writes no more, or the last lease that it was granted has run out:
what a dead process has sent may still be on its way.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

from segpipe.errors import RunError
from segpipe.labeling.engines.messages import Alive, Grant, Ready, Shard
from segpipe.labeling.engines.work import HeldClaim
from segpipe.labeling.items import FinishedShard, Threads
from segpipe.labeling.lease import Moment

logger = logging.getLogger(__name__)

MOST_LOSSES = 3
_MOST_FAILED_STARTS = 6
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 1.0, 30.0
_LONGEST_BEAT_SECONDS = 2.0
_BEATS_PER_LEASE = 4
_HELD_PER_WORKER = 2


@dataclass(frozen=True)
class Started:
    """A worker is ready."""

    worker: int
    ready: Ready


@dataclass(frozen=True)
class Refused:
    """A worker may not label where it is; it stays so."""

    worker: int
    why: str


@dataclass(frozen=True)
class Answered:
    """A worker has taken its grant."""

    worker: int
    alive: Alive


@dataclass(frozen=True)
class Finished:
    """A worker has labelled a shard."""

    worker: int
    shard: FinishedShard


@dataclass(frozen=True)
class Gone:
    """A worker labels no more; has_ended: nothing of it can still be written, else until its lease is out."""

    worker: int
    why: str
    has_ended: bool


Event = Started | Refused | Answered | Finished | Gone


class Fleet(Protocol):
    """Workers somewhere; what becomes of what they are asked comes as events."""

    def start(self) -> int: ...
    def assign(self, worker: int, shard: Shard) -> None: ...
    def extend(self, worker: int, grant: Grant) -> None: ...
    def kill(self, worker: int) -> None: ...
    def events(self, seconds: float) -> list[Event]: ...


@dataclass(frozen=True)
class Rules:
    """workers: how many are wanted; lease_seconds: how long one may be silent; patience_seconds: for how long
    there may be none at all."""

    workers: int
    lease_seconds: float
    patience_seconds: float


@dataclass
class _Worker:
    """A worker that is ready. now: the moment it told last, answered_at: when that was heard; lease_until:
    when its last lease has run out for sure, by the driver's clock; done: images, of finished shards too."""

    ready: Ready
    now: Moment
    answered_at: float
    lease_until: float = 0.0
    is_asked: bool = False
    shards: dict[int, Shard] = field(default_factory=dict)
    done: int = 0
    finished: int = 0


@dataclass(frozen=True)
class _Lost:
    """Shards of a worker that may still write until then."""

    worker: int
    until: float
    shards: tuple[Shard, ...]


class Dispatcher:
    """One step after the other until all shards are finished; not safe with threads."""

    def __init__(
        self,
        shards: Iterator[Shard],
        fleet: Fleet,
        claim: HeldClaim,
        rules: Rules,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._claim, self._rules, self._clock = fleet, claim, rules, clock
        self._shards = shards
        self._waiting: deque[Shard] = deque()
        self._starting: set[int] = set()
        self._ready: dict[int, _Worker] = {}
        self._lost: list[_Lost] = []
        self._losses: dict[int, int] = {}
        self._refused: list[str] = []
        self._failed_starts, self._start_at = 0, 0.0
        self._none_since = self.began_at = clock()
        self._gate: int | None = None
        self._gate_is_out = False
        self._held: deque[FinishedShard] = deque()
        self._n_finished = 0
        self._has_begun = False
        self._why = ""

    @property
    def is_over(self) -> bool:
        """Whether every shard has been given out."""
        return not (self._has_waiting() or self._lost or self._held or self._in_work())

    @property
    def images_done(self) -> int:
        """How many images are labelled, those of unfinished shards included."""
        return self._n_finished + sum(worker.done - worker.finished for worker in self._ready.values())

    @property
    def may_have_writers(self) -> bool:
        """Whether a worker that was given up may still write: its lease has not run out."""
        return any(one.until > self._clock() for one in self._lost)

    def step(self, seconds: float, room: int) -> list[FinishedShard]:
        """Wait for news, for some seconds at most, and act on it; gives at most `room` finished shards.

        Raises RunError when the claim is lost, a shard was lost too often or no worker is left.
        """
        self._claim.require_alive()
        self._start_workers()
        for event in self._fleet.events(seconds):
            self._hear(event)
        self._bury_silent()
        self._take_back()
        self._renew_leases()
        self._assign()
        self._require_workers()
        return self._give_out(room)

    def _hear(self, event: Event) -> None:
        match event:
            case Started(worker, ready):
                self._starting.discard(worker)
                if not self._has_begun:
                    self.began_at, self._has_begun = self._clock(), True
                self._ready[worker] = _Worker(ready, ready.now, self._clock())
            case Refused(worker, why):
                self._starting.discard(worker)
                self._fleet.kill(worker)
                logger.warning("a worker is not used: %s", why)
                self._refused.append(why)
            case Answered(worker, alive) if worker in self._ready:
                self._note_alive(worker, alive)
            case Finished(worker, shard) if worker in self._ready:
                self._note_finished(worker, shard)
            case Gone(worker, why, has_ended):
                self._bury(worker, why, has_ended)

    def _note_alive(self, number: int, alive: Alive) -> None:
        worker = self._ready[number]
        worker.now, worker.answered_at, worker.is_asked = alive.now, self._clock(), False
        worker.done = max(worker.done, alive.done)  # it may have finished a shard since
        for level, line in alive.said:
            logger.log(level, "worker %d: %s", number, line)

    def _note_finished(self, number: int, shard: FinishedShard) -> None:
        worker = self._ready[number]
        if worker.shards.pop(shard.shard, None) is None:
            return
        worker.finished += len(shard.rows)
        worker.done = max(worker.done, worker.finished)
        self._failed_starts = 0
        self._n_finished += len(shard.rows)
        self._losses.pop(shard.shard, None)
        self._held.append(replace(shard, threads=self._all_threads()))

    def _all_threads(self) -> Threads:
        """Of all workers, so that seconds per thread are those of the whole run."""
        threads = [worker.ready.threads for worker in self._ready.values()]
        return Threads(sum(one.moving for one in threads), sum(one.computing for one in threads))

    def _bury(self, number: int, why: str, has_ended: bool) -> None:
        self._fleet.kill(number)
        if number in self._starting:
            self._starting.discard(number)
            logger.warning("a worker did not start: %s", why)
            self._count_failed_start(why)
            return
        if has_ended:
            self._lost = [replace(one, until=0.0) if one.worker == number else one for one in self._lost]
        worker = self._ready.pop(number, None)
        if worker is None:
            return
        logger.warning("lost worker %d with %d shards: %s", number, len(worker.shards), why)
        self._refused.clear()  # there is room for one where this one was
        if not self._ready:
            self._none_since = self._clock()
        if not (worker.shards or worker.finished):  # it was of no use
            self._count_failed_start(why)
        elif not self._ready:
            self._failed_starts = 0
        if worker.shards:  # else all that it wrote is there
            until = 0.0 if has_ended else worker.lease_until
            self._lost.append(_Lost(number, until, tuple(worker.shards.values())))
            self._count_loss(worker, why)

    def _count_failed_start(self, why: str) -> None:
        self._failed_starts += 1
        self._why = why
        backoff = _FIRST_BACKOFF_SECONDS * 2 ** min(self._failed_starts - 1, _MOST_FAILED_STARTS)
        self._start_at = self._clock() + min(backoff, _LONGEST_BACKOFF_SECONDS)

    def _count_loss(self, worker: _Worker, why: str) -> None:
        """The first shard in work is the one to blame."""
        first = next(iter(worker.shards))
        self._losses[first] = self._losses.get(first, 0) + 1
        if self._losses[first] >= MOST_LOSSES:
            raise RunError(
                f"shard {first} was lost {MOST_LOSSES} times, the last time because: {why}; mend that and "
                "resume with the same run id"
            )

    def _bury_silent(self) -> None:
        now = self._clock()
        for number, worker in list(self._ready.items()):
            silent = now - worker.answered_at
            if silent > self._rules.lease_seconds:
                self._bury(number, f"no answer for {silent:.0f} s", has_ended=False)

    def _take_back(self) -> None:
        """The shards of lost workers that write no more are the next to be labelled, the first one first: for
        it all others may be held."""
        now = self._clock()
        back = [one for one in self._lost if one.until <= now]
        if back:
            shards = chain(self._waiting, *(one.shards for one in back))
            self._waiting = deque(sorted(shards, key=lambda shard: shard.number))
            self._lost = [one for one in self._lost if one.until > now]

    def _start_workers(self) -> None:
        wanted = min(self._rules.workers - len(self._refused), self._shards_left())
        while len(self._starting) + len(self._ready) < wanted and self._clock() >= self._start_at:
            self._starting.add(self._fleet.start())

    def _shards_left(self) -> int:
        """How many shards are not finished; of those that nobody has looked at no more than can matter."""
        lost = sum(len(one.shards) for one in self._lost)
        known = lost + self._in_work()
        while known + len(self._waiting) < self._rules.workers and self._look_ahead():
            pass
        return known + len(self._waiting)

    def _in_work(self) -> int:
        return sum(len(worker.shards) for worker in self._ready.values())

    def _look_ahead(self) -> bool:
        shard = next(self._shards, None)
        if shard is None:
            return False
        if self._gate is None:
            self._gate = shard.number
        self._waiting.append(shard)
        return True

    def _has_waiting(self) -> bool:
        return bool(self._waiting) or self._look_ahead()

    def _renew_leases(self) -> None:
        """One grant at a time: a second one, unanswered, would prolong the lease of a worker that hangs."""
        beat = min(self._rules.lease_seconds / _BEATS_PER_LEASE, _LONGEST_BEAT_SECONDS)
        for number, worker in self._ready.items():
            is_first = worker.lease_until == 0.0
            if worker.is_asked or not (is_first or self._clock() - worker.answered_at >= beat):
                continue
            seconds = min(self._rules.lease_seconds, self._claim.seconds_left())
            worker.is_asked = True
            worker.lease_until = max(worker.lease_until, worker.answered_at + seconds)
            self._fleet.extend(number, Grant(worker.now, seconds))

    def _assign(self) -> None:
        """The worker with the fewest shards comes first, so that the last ones are shared out evenly."""
        while self._has_waiting() and self._may_assign(self._waiting[0]):
            free = [
                (len(worker.shards), number)
                for number, worker in self._ready.items()
                if worker.now is not worker.ready.now and len(worker.shards) < worker.ready.depth
            ]
            if not free:
                return
            _, number = min(free)
            shard = self._waiting.popleft()
            self._ready[number].shards[shard.number] = shard
            self._fleet.assign(number, shard)

    def _may_assign(self, shard: Shard) -> bool:
        """Not too many that wait for the verdict on the first, or to be committed."""
        return shard.number == self._gate or len(self._held) < _HELD_PER_WORKER * self._rules.workers

    def _require_workers(self) -> None:
        if self._rules.workers <= len(self._refused):
            raise RunError(self._refused[-1])
        if self._failed_starts >= _MOST_FAILED_STARTS and not self._ready:
            raise RunError(f"no worker starts: {self._why}; mend that and resume with the same run id")
        alone = self._clock() - self._none_since
        if not self._ready and alone > self._rules.patience_seconds:
            raise RunError(
                f"there has been no worker for {alone:.0f} s: the cluster has no room for one (ray "
                "status says why); resume with the same run id when it has"
            )

    def _give_out(self, room: int) -> list[FinishedShard]:
        if not self._gate_is_out:
            gate = next((one for one in self._held if one.shard == self._gate), None)
            if gate is None or room < 1:
                return []
            self._held.remove(gate)
            self._gate_is_out = True
            return [gate]
        return [self._held.popleft() for _ in range(min(room, len(self._held)))]
