"""What a signal does to the work of this process; tests/faults sends signals to a real labelling run."""

from __future__ import annotations

import signal
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
