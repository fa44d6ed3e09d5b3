"""Workers that die, hang, thaw and answer late at random: a shard comes once and never has two writers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from segpipe.errors import RunError
from segpipe.labeling.engines.dispatch import Answered, Dispatcher, Event, Finished, Gone, Rules, Started
from segpipe.labeling.engines.messages import Alive, Grant, Ready, Shard
from segpipe.labeling.items import FinishedShard, Legs, PlannedImage, Threads
from segpipe.labeling.lease import Moment

THREADS, ROUNDING = Threads(1, 1), 1e-6
IMAGE = PlannedImage(0, "u", "e", 1, "k")


@dataclass
class Worker:
    """ahead: its clock's seconds; until: when it may write no more, by the driver's clock."""

    ahead: float
    state: str = "starting"
    shards: list[int] = field(default_factory=list)
    until: float = -1.0
    grant: Grant | None = None
    done: int = 0


@dataclass
class Fleet:
    """Workers of which each may do anything at any look; trouble: how often."""

    random: random.Random
    trouble: float
    now: float = 0.0
    workers: list[Worker] = field(default_factory=list)

    def start(self) -> int:
        self.workers.append(Worker(self.random.uniform(0, 1000)))
        return len(self.workers) - 1

    def assign(self, worker: int, shard: Shard) -> None:
        writers = [one for one in self.workers if shard.number in one.shards]
        assert all(one.until <= self.now + ROUNDING for one in writers)
        self.workers[worker].shards.append(shard.number)

    def extend(self, worker: int, grant: Grant) -> None:
        assert self.workers[worker].grant is None
        self.workers[worker].grant = grant

    def kill(self, worker: int) -> None:
        if self.workers[worker].state != "hung":
            self.workers[worker].state = "dead"

    def events(self, seconds: float) -> list[Event]:
        news = [one for number in range(len(self.workers)) for one in self._news(number)]
        self.random.shuffle(news)
        return news

    def _news(self, number: int) -> list[Event]:
        worker, chance = self.workers[number], self.random.random()
        told = Moment(0, worker.ahead + self.now)
        if worker.state == "starting" and chance < 0.3:
            worker.state = "ready"
            return [Started(number, Ready(told, self.random.choice([1, 2, 4]), THREADS))]
        if worker.state == "hung" and chance < 0.02:
            worker.state = "ready"
        if worker.state != "ready":
            return []
        if chance < 3 * self.trouble:
            worker.state, has_ended = self.random.choice([("hung", False), ("dead", False), ("dead", True)])
            worker.until = -1.0 if has_ended else worker.until
            return [] if worker.state == "hung" else [Gone(number, "died", has_ended)]
        return [*self._answer(number, worker, told), *self._work(number, worker)]

    def _answer(self, number: int, worker: Worker, told: Moment) -> list[Event]:
        if worker.grant is None or self.random.random() < 0.2:
            return []
        worker.until = max(worker.until, worker.grant.since.steady - worker.ahead + worker.grant.seconds)
        worker.grant = None
        return [Answered(number, Alive(told, worker.done, ()))]

    def _work(self, number: int, worker: Worker) -> list[Event]:
        if not worker.shards or worker.until <= self.now or self.random.random() < 0.6:
            return []
        worker.done += 1
        shard = worker.shards.pop(0)
        return [Finished(number, FinishedShard(shard, (None,), 0.0, Legs(), THREADS))]  # type: ignore[arg-type]


class Claim:
    def require_alive(self) -> None: ...

    def seconds_left(self) -> float:
        return 20.0

    def let_expire(self) -> None: ...


@pytest.mark.parametrize("seed", range(30))
def test_every_shard_comes_once_the_first_one_first(seed: int) -> None:
    drawn = random.Random(seed)
    fleet = Fleet(drawn, drawn.choice([0.0, 0.005, 0.02]))
    shards, rules = drawn.choice([1, 2, 7, 40]), Rules(drawn.choice([1, 2, 3, 5]), 10.0, 600.0)
    given = (Shard(number, (IMAGE,)) for number in range(shards))
    dispatcher = Dispatcher(given, fleet, Claim(), rules, lambda: fleet.now)
    out: list[int] = []
    try:
        for _ in range(5000):
            if dispatcher.is_over:
                break
            out += [one.shard for one in dispatcher.step(0, drawn.choice([0, 1, 5]))]
            fleet.now += 0.25
    except RunError:  # a shard was lost three times
        assert fleet.trouble
        assert len(set(out)) == len(out)
        return
    assert out[0] == 0
    assert sorted(out) == list(range(shards))
    assert dispatcher.images_done == shards
