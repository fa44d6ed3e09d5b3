"""SIGTERM and Ctrl-C: the run ends within seconds, lets its claim go and says how to resume."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from s3_proxy import Exchange, Request, pass_on, stay_silent

pytestmark = pytest.mark.faults

PART, MASK, READ = r"^PUT .*/manifests/", r"^PUT .*/masks/", r"^GET .*/raw/"
LABELLED_BEFORE = r"^HEAD .*/manifests_compacted"


def assert_says_how_to_resume(said: str) -> str:
    last = said.splitlines()[-1]
    assert last.startswith("segpipe: stopped; to go on, run the same command again with --run-id r1")
    assert "Traceback" not in said
    return last


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_in_order_and_a_resume_finishes_it(
    labelling, proxy, bucket, waiting, number: signal.Signals, status: int
) -> None:
    proxy.decide = lambda request: slowly if request.matches(READ) else pass_on
    process = labelling.start("out", "r1", "--fetch-threads", "2")
    waiting(lambda: proxy.count(PART) >= 1, "the first part")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert_says_how_to_resume(said)
    assert bucket.claim("out")["released"]
    assert 0 < len(bucket.assert_finished_facts("out")) < 24

    labelling.run("out", "r1")
    bucket.assert_whole("out", {"r1"})


def slowly(exchange: Exchange) -> None:
    threading.Event().wait(0.2)
    pass_on(exchange)


def test_a_part_under_way_lands_before_the_claim_is_let_go(labelling, proxy, bucket, waiting) -> None:
    arrived, let_through = threading.Event(), threading.Event()

    def held(exchange: Exchange) -> None:
        arrived.set()
        let_through.wait(60)
        pass_on(exchange)

    proxy.decide = lambda request: held if request.matches(PART) else pass_on
    process = labelling.start("out", "r1")
    assert arrived.wait(120)
    process.send_signal(signal.SIGTERM)
    threading.Event().wait(1)  # nothing to see is what is awaited
    assert process.poll() is None
    assert not bucket.claim("out")["released"]
    let_through.set()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert_says_how_to_resume(said)
    assert len(bucket.assert_finished_facts("out")) == 4
    assert bucket.claim("out")["released"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_whose_storage_says_nothing(
    labelling, proxy, bucket, waiting, number: signal.Signals, status: int
) -> None:
    def decide(request: Request):
        return stay_silent if any(seen.matches(MASK) for seen in proxy.seen) else pass_on

    proxy.decide = decide
    process = labelling.start("out", "r1")
    waiting(lambda: proxy.count(MASK) >= 1, "the first mask")
    sent_at = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert time.monotonic() - sent_at < 15  # 5 s of grace, and a machine with other work
    assert "abandoned" in assert_says_how_to_resume(said)

    proxy.decide = lambda request: pass_on
    labelling.run("out", "r1")
    bucket.assert_whole("out", {"r1"})


def test_a_signal_ends_a_run_that_waits_in_a_database_for_a_silent_storage(labelling, proxy, waiting) -> None:
    """DuckDB asks for what was labelled before in a thread; nobody in the main one sees a signal."""
    proxy.decide = lambda request: stay_silent if request.matches(LABELLED_BEFORE) else pass_on
    process = labelling.start("out", "r1")
    waiting(lambda: proxy.count(LABELLED_BEFORE) >= 1, "the listing of what was labelled before")
    threading.Event().wait(1)  # until the main thread waits; nothing outside the process tells
    sent_at = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - sent_at < 15
    assert_says_how_to_resume(said)


def test_a_second_signal_ends_the_process_on_the_spot(labelling, proxy, bucket, waiting) -> None:
    proxy.decide = lambda request: stay_silent if request.matches(MASK) else pass_on
    process = labelling.start("out", "r1")
    waiting(lambda: proxy.count(MASK) >= 1, "the first mask")
    sent_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    threading.Event().wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert time.monotonic() - sent_at < 4.5
    assert_says_how_to_resume(said)
