"""When workers are ended: who may still write, and what is made of a signal that comes while Ray starts."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions
from ray.exceptions import ActorUnavailableError

from segpipe.config import LabelSettings
from segpipe.labeling.claim import hold_claim
from segpipe.labeling.engines import ray as engine
from segpipe.labeling.engines.messages import Shard, Task
from segpipe.labeling.place import Place
from segpipe.logs import add_ids, log_ids

pytestmark = pytest.mark.ray

GONE = ActorUnavailableError("its node cannot be reached", b"0" * 16)
PLACE = Place("in", "out", "out/masks", None, "r1", "a" * 12, 2, datetime.now(UTC))


@dataclass
class Worker:
    """An actor that answers all it is asked with a text, an error, or None: not at all."""

    answer: Any

    def options(self, **_: Any) -> Worker:
        return self

    @property
    def start(self) -> Worker:
        return self

    label = stop = start

    def remote(self, *_: Any) -> Any:
        return object(), self.answer  # a reference


@dataclass
class Ray:
    """As much of Ray as a fleet asks for, with one worker for each answer."""

    answers: Iterator[Any]
    killed: list[Worker] = field(default_factory=list)

    def remote(self, **_: Any) -> Any:
        make = SimpleNamespace(remote=lambda: Worker(next(self.answers)))
        return lambda _: SimpleNamespace(options=lambda **_: make)

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="127.0.0.1:1", get_node_id=lambda: "n")

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "n", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": 1}]

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        answered = [one for one in references if one[1] is not None]
        return answered, [one for one in references if one not in answered]

    def get(self, references: list[Any]) -> list[Any]:
        for _, answer in references:
            if isinstance(answer, Exception):
                raise answer
        return [answer for _, answer in references]

    def kill(self, worker: Worker) -> None:
        self.killed.append(worker)


@pytest.mark.parametrize(
    ("answers", "ended"),
    [(["{}", "{}"], True), (["{}", None], False), (["{}", GONE], False)],
    ids=["both say so", "one is silent", "one cannot be reached"],
)
def test_the_workers_have_ended_once_each_that_wrote_has_said_so(answers: list[Any], ended: bool) -> None:
    ray = Ray(iter(answers))
    task = Task("m", "d", None, "cpu", "{}", PLACE, {})
    fleet = engine.RayFleet(engine._Cluster(ray, 2, 1.0, 0.0, task, None))
    for _ in answers:
        fleet.assign(fleet.start(), Shard(0, ()))
    assert fleet.stop(1.0) is ended
    assert len(ray.killed) == 2


@dataclass
class Claim:
    """Notes whether it is let expire."""

    expires: bool = False

    def require_alive(self) -> None: ...

    def seconds_left(self) -> float:
        return 10.0

    def let_expire(self) -> None:
        self.expires = True


def test_a_claim_expires_where_ending_the_workers_is_cut_short() -> None:
    def told_to_stop(seconds: float) -> bool:
        raise KeyboardInterrupt

    claim, running = Claim(), SimpleNamespace(stop=lambda: None)
    for stop, writers, expires in [
        (lambda seconds: True, False, False),
        (lambda seconds: True, True, True),
        (lambda seconds: False, False, True),
    ]:
        claim.expires = False
        fleet, dispatcher = SimpleNamespace(stop=stop), SimpleNamespace(may_have_writers=writers)
        engine._end(running, fleet, dispatcher, claim)  # type: ignore[arg-type]
        assert claim.expires is expires
    claim.expires = False
    with pytest.raises(KeyboardInterrupt):
        engine._end(running, SimpleNamespace(stop=told_to_stop), dispatcher, claim)  # type: ignore[arg-type]
    assert claim.expires


class _StoppedError(BaseException):
    pass


def start_and_be_told_to_stop() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as ray.init does
    signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_comes_while_ray_starts_is_answered_as_any_other() -> None:
    def stop(*_: Any) -> None:
        raise _StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(_StoppedError), engine._same_signals():
            start_and_be_told_to_stop()
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_claim_outlasts_a_start_of_ray_that_lets_no_other_thread_run(tmp_path: Path) -> None:
    """Who waits for the claim gives it a minute, and so does the run itself, though no heartbeat comes."""
    left: list[float] = []

    def start(**_: Any) -> None:
        told = json.loads(next((tmp_path / "claims" / ("a" * 12)).iterdir()).read_text())
        left.extend([told["lease_seconds"], claim.seconds_left()])

    ray = SimpleNamespace(init=start, exceptions=exceptions)
    with hold_claim(str(tmp_path), "a" * 12, "r1", 20) as claim:
        engine._connect(ray, LabelSettings(engine="ray", workers="1"), claim)
    assert left[0] == 60
    assert 20 < left[1] <= 60


def test_what_is_logged_about_workers_names_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def step(seconds: float, room: int) -> list[Any]:
        logging.getLogger("segpipe").warning("lost worker 1")
        raise KeyError

    caplog.handler.addFilter(add_ids)
    with log_ids(run_id="r1"):
        dispatcher = SimpleNamespace(is_over=False, step=step, images_done=0)
        running = engine._Running(dispatcher, 2)  # type: ignore[arg-type]
        with pytest.raises(KeyError):
            next(running.shards(lambda count: None))
        running.stop()
    caplog.handler.removeFilter(add_ids)
    assert [(record.message, record.run_id) for record in caplog.records] == [("lost worker 1", "r1")]
