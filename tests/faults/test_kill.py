"""A labelling process is killed at each of its steps, and at random ones: nothing lost, nothing doubled."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from dataclasses import dataclass

import pytest
from s3_proxy import Action, Exchange, Request, pass_on

pytestmark = pytest.mark.faults

MASK, PART = r"^PUT .*/masks/", r"^PUT .*/manifests/"
PLAN, RECORD = r"^PUT .*/plan\.parquet", r"^PUT .*/run\.json"
TOTALS = r'^PUT .*/run\.json[^{]* \{(.|\n)*"totals"'
CLAIM = r"^PUT .*/claims/"
RELEASE, RENEWAL = r'^PUT .*/claims/.*"released": true', r'^PUT .*/claims/.*"released": false'
TIDY = r"^DELETE .*/claims/"
READ, LISTING = r"^GET .*/raw/", r"^GET .*list-type"

CLAIM_SECONDS = 4.0
LATE_SECONDS = 0.5  # well within the claim: a request that outlives its claim can do harm, as docs say
LATENCY_SECONDS = 0.15  # of an image's read, so that a run lasts long enough for its claim to be renewed


@dataclass(frozen=True)
class Step:
    """Kill at the n-th request of a kind that this process sends.

    before: the server never hears of it; after: it has done it; late: it does it once the process is dead.
    """

    kind: str
    number: int
    moment: str


@dataclass
class Killer:
    """Kills a process when it comes to the step, and lets none of its later requests through."""

    step: Step
    process: subprocess.Popen[str]
    seen: int = 0
    struck: bool = False

    def __call__(self, request: Request) -> Action:
        if self.struck:
            return drop
        if request.matches(self.step.kind):
            self.seen += 1
            self.struck = self.seen == self.step.number
        return self.strike if self.struck else slowly if request.matches(READ) else pass_on

    def strike(self, exchange: Exchange) -> None:
        if self.step.moment == "after":
            exchange.forward()
        self.process.kill()
        self.process.wait()
        if self.step.moment == "late":
            threading.Event().wait(LATE_SECONDS)
            exchange.forward()
        drop(exchange)


def drop(exchange: Exchange) -> None:
    exchange.handler.close_connection = True


def slowly(exchange: Exchange) -> None:
    threading.Event().wait(LATENCY_SECONDS)
    pass_on(exchange)


OPTIONS = ["--fetch-threads", "2", "--claim-seconds", str(CLAIM_SECONDS)]

# Each list is one run, killed at one step after the other.
STEPS = {
    "claim, plan, commits, totals": [
        Step(CLAIM, 1, "before"),
        Step(CLAIM, 1, "after"),
        Step(LISTING, 3, "before"),
        Step(PLAN, 1, "before"),
        Step(PLAN, 1, "after"),
        Step(MASK, 1, "before"),
        Step(MASK, 3, "after"),
        Step(PART, 1, "before"),
        Step(PART, 1, "after"),
        Step(PART, 2, "after"),
        Step(TIDY, 1, "before"),
        Step(TOTALS, 1, "before"),
        Step(TOTALS, 1, "after"),
    ],
    "requests that arrive after their sender's death": [
        Step(CLAIM, 1, "late"),
        Step(PLAN, 1, "late"),
        Step(RENEWAL, 2, "before"),
        Step(RENEWAL, 2, "after"),
        Step(READ, 3, "before"),
        Step(MASK, 2, "late"),
        Step(PART, 1, "late"),
        Step(PART, 2, "before"),
        Step(RELEASE, 1, "before"),
        Step(TOTALS, 1, "late"),
    ],
    "record before, release after": [
        Step(RECORD, 1, "before"),
        Step(RENEWAL, 2, "late"),
        Step(MASK, 5, "before"),
        Step(PART, 3, "before"),
        Step(PART, 1, "after"),
        Step(RELEASE, 1, "after"),
    ],
    "record after, release late": [
        Step(RECORD, 1, "after"),
        Step(MASK, 4, "after"),
        Step(PART, 3, "late"),
        Step(RELEASE, 1, "late"),
        Step(TIDY, 1, "after"),
    ],
}
RANDOM_KILLS = 8
STARVED_STARTS = 3


def kill_at(step: Step, labelling, proxy, output: str, run_id: str) -> tuple[int, str]:
    """Exit status and stderr of a process that was to be killed at the step."""
    for _ in range(STARVED_STARTS):
        process = labelling.start(output, run_id, *OPTIONS)
        proxy.decide = Killer(step, process)  # in time: before its first request it has torch to import
        _, said = process.communicate(timeout=240)
        if "its lease could not be renewed in time" not in said:  # as on a machine with too much to do
            break
    return process.returncode, said


def finish(labelling, proxy, bucket, output: str, run_id: str) -> None:
    proxy.decide = lambda request: pass_on
    assert labelling.run(output, run_id)["review"] == len(bucket.images)
    bucket.assert_whole(output, {run_id})


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_run_killed_at_its_steps_is_finished_by_a_resume(
    labelling, proxy, bucket, steps: list[Step]
) -> None:
    for step in steps:
        status, said = kill_at(step, labelling, proxy, "out", "r1")
        assert status == -signal.SIGKILL, f"{step} was not reached: {said}"
        bucket.assert_finished_facts("out")
    finish(labelling, proxy, bucket, "out", "r1")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_random_moments_is_finished_by_a_resume(labelling, proxy, bucket, seed: int) -> None:
    rng, kills, run = random.Random(seed), 0, 0
    while kills < RANDOM_KILLS:
        step = Step("", rng.randint(1, 90), rng.choice(["before", "after", "late"]))
        status, said = kill_at(step, labelling, proxy, f"out{run}", f"r{run}")
        assert status in (0, -signal.SIGKILL), said
        bucket.assert_finished_facts(f"out{run}")
        if status == 0:  # it had ended before its turn
            bucket.assert_whole(f"out{run}", {f"r{run}"})
            run += 1
        kills += status != 0
    finish(labelling, proxy, bucket, f"out{run}", f"r{run}")
