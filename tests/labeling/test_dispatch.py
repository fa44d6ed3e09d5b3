"""Who gets which shard, and when a lost one is done again; the test commands workers and clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

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
from segpipe.labeling.engines.messages import Alive, Grant, Ready, Shard
from segpipe.labeling.items import FinishedShard, Legs, PlannedImage, Threads
from segpipe.labeling.lease import Moment

LEASE = 10.0


@dataclass
class Claim:
    left: float = 20.0
    lost: bool = False

    def require_alive(self) -> None:
        if self.lost:
            raise RunError("lost its claim")

    def seconds_left(self) -> float:
        return self.left

    def let_expire(self) -> None: ...


@dataclass
class Fleet:
    """Notes what workers are asked; the test says what they answer."""

    started: list[int] = field(default_factory=list)
    assigned: list[tuple[int, int]] = field(default_factory=list)
    grants: list[tuple[int, Grant]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    news: list[Event] = field(default_factory=list)

    def start(self) -> int:
        self.started.append(len(self.started) + 1)
        return self.started[-1]

    def assign(self, worker: int, shard: Shard) -> None:
        self.assigned.append((worker, shard.number))

    def extend(self, worker: int, grant: Grant) -> None:
        self.grants.append((worker, grant))

    def kill(self, worker: int) -> None:
        self.killed.append(worker)

    def events(self, seconds: float) -> list[Event]:
        news, self.news = self.news, []
        return news


class Stage:
    """A dispatcher of so many shards of two images."""

    def __init__(self, shards: int, workers: int, depth: int = 2) -> None:
        self.fleet, self.claim, self.now, self.depth = Fleet(), Claim(), 0.0, depth
        rules = Rules(workers, LEASE, patience_seconds=600.0)
        self.dispatcher = Dispatcher(_shards(shards), self.fleet, self.claim, rules, lambda: self.now)
        self.out: list[int] = []

    def step(self, *news: Event, after: float = 0.0, room: int = 100) -> None:
        self.now += after
        self.fleet.news += news
        self.out += [shard.shard for shard in self.dispatcher.step(0, room)]

    def ready(self, *workers: int) -> None:
        """Have these started, and their first lease answered."""
        for worker in workers:
            self.step(Started(worker, Ready(Moment(0, self.now), self.depth, Threads(3, 1))))
            self.step(self.alive(worker))

    def alive(self, worker: int, done: int = 0) -> Event:
        return Answered(worker, Alive(Moment(0, self.now), done, ()))

    def finished(self, worker: int, shard: int) -> Event:
        rows = (None, None)  # no row is looked at here
        return Finished(worker, FinishedShard(shard, rows, 0.0, Legs(), Threads(3, 1)))  # type: ignore[arg-type]

    @property
    def of_worker(self) -> dict[int, list[int]]:
        return {
            worker: [shard for by, shard in self.fleet.assigned if by == worker]
            for worker in self.fleet.started
        }


def _shards(count: int) -> Iterator[Shard]:
    image = PlannedImage(0, "u", "e", 1, "k")
    return (Shard(number, (image, image)) for number in range(count))


@pytest.fixture
def stage() -> Callable[..., Stage]:
    return Stage


def test_shards_go_to_workers_that_hold_a_lease_and_the_first_one_is_out_first(stage) -> None:
    run = stage(shards=6, workers=2)
    run.step()
    assert run.fleet.started == [1, 2]
    run.step(Started(1, Ready(Moment(0, 5), 2, Threads(3, 1))))
    assert run.fleet.assigned == []  # it must not write yet
    run.step(run.alive(1))
    run.ready(2)
    assert run.of_worker == {1: [0, 1], 2: [2, 3]}
    run.step(run.finished(2, 2), run.finished(2, 3))
    assert run.out == []  # the verdict on the first shard holds for these
    run.step(run.finished(1, 0))
    assert run.out == [0]
    run.step()
    assert run.out == [0, 2, 3]
    run.step(run.finished(1, 1), run.finished(2, 4), run.finished(2, 5))
    assert run.out == [0, 2, 3, 1, 4, 5]
    assert run.dispatcher.is_over
    assert run.dispatcher.images_done == 12


def test_an_answer_that_is_older_than_a_finished_shard_takes_back_no_progress(stage) -> None:
    run = stage(shards=1, workers=1)
    run.step()
    run.ready(1)
    run.step(run.alive(1, done=1))
    assert run.dispatcher.images_done == 1
    run.step(run.finished(1, 0), run.alive(1, done=1))
    assert run.dispatcher.is_over
    assert run.dispatcher.images_done == 2


def test_no_more_than_twice_the_workers_shards_are_held(stage) -> None:
    run = stage(shards=40, workers=2)
    run.step()
    run.ready(1, 2)
    for shard in (2, 3, 4, 5):
        run.step(run.finished(2, shard))
    assert run.of_worker[2] == [2, 3, 4, 5, 6]  # and the seventh would be a fifth that is held
    run.step(Gone(1, "killed", has_ended=True))
    assert run.fleet.assigned[-1] == (2, 0)  # but the first is what all wait for


def test_no_more_workers_are_started_than_there_are_shards(stage) -> None:
    run = stage(shards=2, workers=5)
    run.step()
    assert run.fleet.started == [1, 2]


def test_a_worker_that_says_it_writes_no_more_has_its_shards_done_again_at_once(stage) -> None:
    run = stage(shards=2, workers=1)
    run.step()
    run.ready(1)
    run.step(Gone(1, "device lost", has_ended=True), after=1.0)
    run.ready(2)
    assert run.of_worker == {1: [0, 1], 2: [0, 1]}
    run.step(run.finished(1, 0))  # the answer of one that is gone is nobody's
    assert run.out == []


def test_the_shards_of_a_dead_or_silent_worker_wait_for_the_end_of_its_last_lease(stage) -> None:
    run = stage(shards=1, workers=1)
    run.step()
    run.ready(1)  # at 0; the next lease is granted at the answer of 0 for 10 s
    run.step(run.alive(1), after=2.0)  # heard at 2, and granted again: until 12
    run.step(after=2.0)
    run.step(Gone(1, "unavailable", has_ended=False), after=1.0)
    run.ready(2)
    run.step(run.alive(2), after=6.9)
    assert run.fleet.assigned == [(1, 0)]
    assert run.dispatcher.may_have_writers  # so that the claim is not let go
    run.step(run.alive(2), after=0.1)
    assert run.fleet.assigned == [(1, 0), (2, 0)]
    assert not run.dispatcher.may_have_writers


def test_a_lost_worker_that_says_it_writes_no_more_ends_the_wait(stage) -> None:
    run = stage(shards=1, workers=1)
    run.step()
    run.ready(1)
    run.step(Gone(1, "unavailable", has_ended=False))
    run.ready(2)
    assert run.fleet.assigned == [(1, 0)]
    run.step(Gone(1, "device lost", has_ended=True))
    assert run.fleet.assigned == [(1, 0), (2, 0)]


def test_a_silent_worker_is_killed_when_its_lease_is_out(stage) -> None:
    run = stage(shards=1, workers=1)
    run.step()
    run.ready(1)
    run.step(after=LEASE)
    assert run.fleet.killed == []
    run.step(after=0.1)
    assert run.fleet.killed == [1]
    run.ready(2)
    assert run.fleet.assigned == [(1, 0), (2, 0)]


def test_a_lease_is_granted_from_what_the_worker_said_and_never_twice_without_an_answer(stage) -> None:
    run = stage(shards=1, workers=1)
    run.step()
    run.step(Started(1, Ready(Moment(0, 77), 2, Threads(3, 1))))
    assert run.fleet.grants == [(1, Grant(Moment(0, 77), LEASE))]
    run.step(after=5.0)
    assert len(run.fleet.grants) == 1
    run.step(Answered(1, Alive(Moment(0, 82), 0, ())))
    run.step(after=2.0)
    assert run.fleet.grants[1:] == [(1, Grant(Moment(0, 82), LEASE))]


def test_no_lease_outlives_the_claim(stage) -> None:
    run = stage(shards=1, workers=1)
    run.claim.left = 3.0
    run.step()
    run.ready(1)
    assert run.fleet.grants[0][1].seconds == 3.0
    run.claim.lost = True
    with pytest.raises(RunError, match="lost its claim"):
        run.step()


def lost_twice(stage):
    """A run whose first shard two workers have lost, and a third has it."""
    run = stage(shards=4, workers=1)
    run.step()
    for worker in (1, 2):
        run.ready(worker)
        run.step(Gone(worker, "out of memory", has_ended=True))
    run.ready(3)
    return run


def test_a_shard_that_is_lost_three_times_ends_the_run_and_says_why(stage) -> None:
    run = lost_twice(stage)
    with pytest.raises(RunError, match=r"shard 0 was lost 3 times.*out of memory.*resume"):
        run.step(Gone(3, "out of memory", has_ended=True))


def test_a_third_loss_leaves_a_worker_that_may_still_write(stage) -> None:
    run = lost_twice(stage)
    with pytest.raises(RunError, match="shard 0 was lost 3 times"):
        run.step(Gone(3, "unavailable", has_ended=False))
    assert run.dispatcher.may_have_writers  # so that the claim is not let go


def test_the_first_shard_is_done_again_before_those_that_another_worker_lost_after_it(stage) -> None:
    run = stage(shards=40, workers=2)
    run.step()
    run.ready(1, 2)
    for shard in (2, 3, 4, 5):
        run.step(run.finished(2, shard))
    assert run.of_worker == {1: [0, 1], 2: [2, 3, 4, 5, 6]}  # four are held until the first is there
    run.step(Gone(1, "its node is dead", has_ended=True), Gone(2, "its node is dead", has_ended=True))
    run.ready(3)
    assert run.of_worker[3] == [0]  # else all would wait for one another
    run.step(run.finished(3, 0))
    run.step()
    run.step()
    assert run.out == [0, 2, 3, 4, 5]
    assert run.of_worker[3] == [0, 1, 6]


def test_a_shard_behind_the_first_in_work_is_not_blamed(stage) -> None:
    run = stage(shards=9, workers=1)
    run.step()
    for worker in (1, 2, 3, 4):
        run.ready(worker)
        run.step(run.finished(worker, worker - 1))  # so that shard `worker` is the first in work
        run.step(Gone(worker, "killed", has_ended=True))
    assert run.out == [0, 1, 2, 3]


def test_what_does_not_start_is_tried_again_after_longer_and_longer_waits(stage) -> None:
    run = stage(shards=1, workers=1)
    for worker, wait in enumerate((1.0, 2.0, 4.0, 8.0, 16.0), start=1):
        run.step()
        run.step(Gone(worker, "its node is dead", has_ended=False))
        run.step(after=wait - 0.1)
        assert len(run.fleet.started) == worker
        run.step(after=0.1)
        assert len(run.fleet.started) == worker + 1
    with pytest.raises(RunError, match=r"no worker starts: its node is dead"):
        run.step(Gone(6, "its node is dead", has_ended=False))


def test_workers_that_do_not_start_end_no_run_of_which_another_works(stage) -> None:
    run = stage(shards=9, workers=2)
    run.step()
    run.ready(1)
    for _ in range(2000):  # for days
        run.step(Gone(run.fleet.started[-1], "its node is broken", has_ended=False))
        run.step(run.alive(1), after=LEASE)
        run.step(run.alive(1), after=LEASE)
        run.step(run.alive(1), after=LEASE)
    assert len(run.fleet.started) == 2002
    run.step(Gone(1, "killed", has_ended=True))
    for _ in range(5):  # six in a row, from then on
        run.step(Gone(run.fleet.started[-1], "its node is broken", has_ended=False))
        run.step(after=3 * LEASE)
    with pytest.raises(RunError, match="no worker starts: its node is broken"):
        run.step(Gone(run.fleet.started[-1], "its node is broken", has_ended=False))


def test_a_worker_that_starts_and_dies_before_its_first_shard_has_not_started(stage) -> None:
    run = stage(shards=3, workers=1)
    run.step()
    for number in range(1, 6):
        run.step(Started(number, Ready(Moment(0, run.now), 2, Threads(3, 1))))
        run.step(Gone(number, "out of memory", has_ended=True))
        run.step()
        assert run.fleet.started[-1] == number, "not at once"
        run.step(after=40)
    run.step(Started(6, Ready(Moment(0, run.now), 2, Threads(3, 1))))
    with pytest.raises(RunError, match="no worker starts: out of memory"):
        run.step(Gone(6, "out of memory", has_ended=True))


def test_an_idle_worker_that_dies_keeps_nobody_waiting(stage) -> None:
    run = stage(shards=2, workers=2, depth=1)
    run.step()
    run.ready(1, 2)
    run.step(run.finished(1, 0))
    run.step(Gone(1, "unavailable", has_ended=False))
    assert not run.dispatcher.may_have_writers  # the masks of its shards are all there
    run.step(run.finished(2, 1))
    assert run.dispatcher.is_over


def test_why_no_worker_starts_is_not_hidden_by_what_is_heard_of_one_that_was_killed(stage) -> None:
    run = stage(shards=9, workers=2)
    run.step()
    run.ready(1)
    run.step(Gone(1, "out of memory", has_ended=True))
    for worker in range(2, 7):
        run.step(Gone(worker, "the model cannot be read", has_ended=True), after=60.0)
    run.step(after=60.0)
    last = run.fleet.started[-1]
    with pytest.raises(RunError, match="no worker starts: the model cannot be read"):
        run.step(Gone(last, "the model cannot be read", has_ended=True), Gone(1, "killed", has_ended=False))


def test_a_refusal_leaves_the_others_to_work_and_ends_the_run_when_all_refuse(stage) -> None:
    run = stage(shards=9, workers=2)
    run.step()
    run.step(Refused(1, "node a has torch 2.12"))
    run.step(after=60.0)
    assert run.fleet.started == [1, 2]
    run.ready(2)
    assert run.of_worker[2] == [0, 1]
    run = stage(shards=9, workers=1)
    run.step()
    with pytest.raises(RunError, match=r"node a has torch 2\.12"):
        run.step(Refused(1, "node a has torch 2.12"))


def test_a_worker_that_is_lost_is_replaced_whatever_was_refused_before(stage) -> None:
    run = stage(shards=9, workers=2)
    run.step()
    run.step(Refused(1, "node a has torch 2.12"))
    run.ready(2)
    run.step(Gone(2, "killed", has_ended=True))
    run.step()
    assert run.fleet.started == [1, 2, 3, 4]  # one for each place
    run.step(Refused(3, "node a has torch 2.12"))
    run.ready(4)
    assert run.of_worker[4] == [0, 1]


def test_a_cluster_that_has_no_room_for_a_worker_is_waited_for_and_then_given_up(stage) -> None:
    run = stage(shards=1, workers=1)
    run.step()
    run.step(after=600.0)
    with pytest.raises(RunError, match=r"no worker for 601 s.*resume"):
        run.step(after=1.0)
