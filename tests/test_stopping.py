"""What a signal does to the work of this process; tests/faults sends signals to a real labelling run."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa
import pytest

from segpipe.stopping import StoppedError, stop_on_signals


class _Thing:
    pass


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A suite that was started in the background ignores SIGINT; these tests do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def no_end(status: int) -> None:
    pytest.fail("the work was to unwind")


def signal_in_plain_work(number: signal.Signals) -> None:
    signal.raise_signal(number)


def signal_while_an_object_is_destroyed(number: signal.Signals) -> None:
    """Python cannot pass on what is raised in a destructor or in a weak reference's callback."""
    thing = _Thing()
    watcher = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert watcher() is None
    threading.Event().wait(2)


def signal_while_duckdb_reads(number: signal.Signals) -> None:
    """DuckDB makes an error of its own of what a stream raises."""

    def batches() -> Iterator[pa.RecordBatch]:
        signal.raise_signal(number)
        yield pa.record_batch({"a": [1]})

    stream = pa.RecordBatchReader.from_batches(pa.schema({"a": pa.int64()}), batches())  # noqa: F841
    duckdb.connect().execute("SELECT * FROM stream")


@pytest.mark.parametrize(
    "work", [signal_in_plain_work, signal_while_an_object_is_destroyed, signal_while_duckdb_reads]
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_unwinds_the_work(
    number: signal.Signals, status: int, work: Callable[[signal.Signals], None]
) -> None:
    unwound: list[str] = []

    def stopped() -> None:
        with stop_on_signals(no_end):
            try:
                work(number)
            finally:
                unwound.append("in order")

    with pytest.raises(StoppedError) as stop:
        stopped()
    assert unwound == ["in order"]
    assert stop.value.status == status


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="a reason"), stop_on_signals(no_end):
        raise ValueError("a reason")


def test_afterwards_signals_and_unraisable_errors_are_handled_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda lost: reported.append(lost.exc_type))
    handler = signal.getsignal(signal.SIGTERM)

    def fail(_: object) -> None:
        raise ValueError("in a callback")

    for surrounded in (True, False):
        thing = _Thing()
        watcher = weakref.ref(thing, fail)
        if surrounded:
            with stop_on_signals(no_end):
                del thing
        else:
            del thing
        assert watcher() is None
    assert reported == [ValueError, ValueError]
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_comes_while_a_thread_is_being_started_unwinds_the_work(
    number: signal.Signals, status: int
) -> None:
    """A handler that starts a thread of its own would wait here for ever for a lock that it holds itself."""
    with pytest.raises(StoppedError) as stop, stop_on_signals(no_end), threading._active_limbo_lock:  # type: ignore[attr-defined]
        signal.raise_signal(number)
    assert stop.value.status == status


IN_C = """
import hashlib, os, signal, threading, time
from segpipe import stopping
stopping.GRACE_SECONDS = 0.2
signal.signal(signal.SIGINT, signal.default_int_handler)
main = time.pthread_getcpuclockid(threading.main_thread().ident)

def send_signal_once_main_computes(begun):
    while time.clock_gettime(main) < begun + 0.1:
        threading.Event().wait(0.01)
    os.kill(os.getpid(), {number})

def last_words(status):
    print("last words", status, flush=True)
    {last}

with stopping.stop_on_signals(last_words):
    begun = time.clock_gettime(main)
    threading.Thread(target=send_signal_once_main_computes, args=[begun], daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, and no look at signals
"""


@pytest.mark.parametrize(
    ("number", "status", "last"),
    [(signal.SIGTERM, 143, "pass"), (signal.SIGINT, 130, "threading.Event().wait()")],
    ids=["last words said", "last words that hang"],
)
def test_a_signal_ends_a_process_that_is_in_a_call_which_never_looks_at_signals(
    number: signal.Signals, status: int, last: str
) -> None:
    command = [sys.executable, "-c", IN_C.format(number=int(number), last=last)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (status, f"last words {status}\n")


def test_other_signals_that_python_handles_are_no_stop() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with stop_on_signals(no_end):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
