"""Programs are found by their mark, stopped with all their children, and never mistaken for another."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deployments.processes import Program, log_file, pid_of, start, stop

# A parent with a child in a session of its own, as a Prefect worker's flow runs are, that hears of its end.
WITH_CHILD = (
    "import subprocess, sys, time; "
    "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']; "
    "child = subprocess.Popen(sleep, start_new_session=True); "
    "print(child.pid, flush=True); child.wait(); time.sleep(600)"
)
# So much memory takes the system a while to take back from one that was killed.
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "held = b'1' * 2**29; print(0, flush=True); time.sleep(600)"
)
SAYS_SIGINT = (
    "import signal; print(int(signal.getsignal(signal.SIGINT) is signal.default_int_handler), flush=True)"
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """(Python code) -> the number that it prints, once started as the program "it"."""

    def go(code: str) -> int:
        start(tmp_path, Program("it", (sys.executable, "-c", code), dict(os.environ)))
        deadline = time.monotonic() + 60
        while not (said := log_file(tmp_path, "it").read_text()).endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(said)

    yield go
    stop(tmp_path, "it", 1)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_child_in_its_own_session_is_stopped_too(tmp_path: Path, run: Callable[[str], int]) -> None:
    child = run(WITH_CHILD)
    parent = pid_of(tmp_path, "it")
    assert parent is not None
    assert os.getsid(parent) == parent != os.getsid(0)
    assert stop(tmp_path, "it", 10)
    assert not runs(parent)
    assert not runs(child)
    assert pid_of(tmp_path, "it") is None


def test_an_orphan_is_stopped_after_its_parent_was_killed(tmp_path: Path, run: Callable[[str], int]) -> None:
    child = run(WITH_CHILD)
    parent = psutil.Process(pid_of(tmp_path, "it"))
    parent.kill()
    psutil.wait_procs([parent], 10)
    assert pid_of(tmp_path, "it") is None
    assert stop(tmp_path, "it", 10)
    assert not runs(child)


def test_who_does_not_listen_is_killed(tmp_path: Path, run: Callable[[str], int]) -> None:
    run(DEAF)
    pid = pid_of(tmp_path, "it")
    assert stop(tmp_path, "it", 0.2)
    assert not runs(pid or 0)


def test_a_stale_pid_file_that_names_another_process_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "it.pid").write_text(str(os.getpid()))
    assert pid_of(tmp_path, "it") is None
    assert not stop(tmp_path, "it", 1)


def test_a_damaged_pid_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "it.pid").write_text("")
    assert pid_of(tmp_path, "it") is None


def test_another_stack_s_program_of_the_same_name_is_left_alone(
    tmp_path: Path, run: Callable[[str], int]
) -> None:
    run(WITH_CHILD)
    other = tmp_path / "other"
    other.mkdir()
    assert not stop(other, "it", 1)
    assert pid_of(tmp_path, "it") is not None


def test_a_program_hears_sigint_although_a_shell_in_the_background_had_it_ignored(
    run: Callable[[str], int],
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(SAYS_SIGINT) == 1
    finally:
        signal.signal(signal.SIGINT, before)
