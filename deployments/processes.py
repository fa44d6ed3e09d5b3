"""Programs that outlive the terminal: start them, see whether they run, stop them with all their children.

Every program carries a random mark of its folder in its environment and hands it on to its children. A stale
pid file can therefore not be taken for a running program, and no child, whatever session it made, is missed.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_MARK_VARIABLE = "SEGPIPE_STACK_MARK"
_MARK_FILE = "mark"
_KILLED_SECONDS = 5.0


@dataclass(frozen=True)
class Program:
    """A program of the stack; `environment` is all of its environment, and may hold secrets."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def log_file(folder: Path, name: str) -> Path:
    """Where a program's output goes."""
    return folder / "logs" / f"{name}.log"


def start(folder: Path, program: Program) -> None:
    """Start a program in a session of its own, its output appended to its log."""
    log = log_file(folder, program.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    # A shell's "&" has SIGINT ignored, which a child would inherit and then never stop for.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("ab") as output:
        process = subprocess.Popen(
            program.command,
            env={**program.environment, _MARK_VARIABLE: f"{_mark(folder)}:{program.name}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _pid_file(folder, program.name).write_text(str(process.pid))


def pid_of(folder: Path, name: str) -> int | None:
    """The process id of the program, None when it does not run."""
    with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int(_pid_file(folder, name).read_text()))
        if _belongs(process, folder, name):
            return process.pid
    return None


def stop(folder: Path, name: str, patience_seconds: float) -> bool:
    """Stop a program and its children, first asking and then killing; False when nothing ran.

    The children first, and while the program lives: a worker's flow runs can then report that they stopped.
    """
    leader = pid_of(folder, name)
    running = _processes_of(folder, name)
    _ask([process for process in running if process.pid != leader], patience_seconds)
    _ask(_processes_of(folder, name), patience_seconds)
    stubborn = _processes_of(folder, name)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    # Who is about to end has no environment any more, and would not be found again; a zombie nobody may reap.
    psutil.wait_procs(filter(_runs, {*running, *stubborn}), _KILLED_SECONDS)
    _pid_file(folder, name).unlink(missing_ok=True)
    return bool(running)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ask(running: list[psutil.Process], patience_seconds: float) -> None:
    for process in running:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(running, patience_seconds)


def _processes_of(folder: Path, name: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _belongs(process, folder, name)]


def _belongs(process: psutil.Process, folder: Path, name: str) -> bool:
    with suppress(psutil.Error):
        environment: dict[str, str] = process.environ()
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and environment.get(_MARK_VARIABLE) == f"{_mark(folder)}:{name}"
    return False


def _mark(folder: Path) -> str:
    """The folder's random mark, made when it is first asked for."""
    file = folder / _MARK_FILE
    with suppress(FileExistsError), file.open("x") as new:
        new.write(secrets.token_hex(16))
    return file.read_text()


def _pid_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def environment_without(*names: str) -> dict[str, str]:
    """This process's environment without some variables, those that only others may see."""
    return {name: value for name, value in os.environ.items() if name not in names}
