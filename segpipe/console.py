"""What a command says and how it ends: results on stdout, a line and a status on stderr, logs there too."""

from __future__ import annotations

import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic_core import to_json
from pythonjsonlogger.json import JsonFormatter

from segpipe.errors import OutputError, SegpipeError
from segpipe.logs import add_ids, json_formatter, text_formatter
from segpipe.printable import printable_lines
from segpipe.stopping import StoppedError, stop_on_signals
from segpipe.tables import result_lines

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)
LogFormat = Literal["text", "json"]
ABANDONED = "work under way did not end in time and was abandoned"


@dataclass
class Invocation:
    """What a person wants of every command: tracebacks, and the form of the log."""

    debug: bool = False
    log_format: LogFormat = "text"


def fail(error: Exception, invocation: Invocation) -> int:
    """Say what ended the command, after its traceback if that is wanted; exit status 1."""
    if invocation.debug:
        say(traceback.format_exc().rstrip())
    return complain(_one_line(error), 1)


def is_unread() -> bool:
    """Whether standard output is a pipe whose reader has gone, as `head` does when it has enough."""
    waiting = select.poll()
    waiting.register(1, 0)  # errors are told in any case
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, SegpipeError):
        return message
    return f"unexpected {type(error).__name__}: {message} (run again with --debug for the traceback)"


def complain(message: str, status: int) -> int:
    """Say on stderr what went wrong; gives the status back."""
    if _logs_json():
        logger.error(message)
    else:
        say(f"segpipe: {message}")
    return status


def _logs_json() -> bool:
    handlers = logging.getLogger("segpipe").handlers
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def say(text: str) -> None:
    """A line on stderr, without secrets and without what steers a terminal."""
    from segpipe.redaction import redact

    with suppress(OSError):  # a log that nobody can read stops no work
        click.echo(printable_lines(redact(text)), err=True)


def show(text: str) -> None:
    """A result: what it names may be named by anyone, and must not steer the terminal."""
    echo(printable_lines(text))


def echo(text: str) -> None:
    """Raises OutputError when standard output takes nothing more, but for a reader that wants no more."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        raise OutputError(f"the result could not be printed ({error.strerror}): print it elsewhere") from None


def _discard_stdout() -> None:
    """What is still in the buffer would be written again, in vain, at the end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


class ResumableError(Exception):
    """Stopped by a signal; remedy says how to go on."""

    def __init__(self, remedy: str, status: int) -> None:
        super().__init__(remedy)
        self.remedy, self.status = remedy, status


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """A command that a signal stops says with `remedy` how to go on."""
    try:
        with stop_on_signals(partial(complain, f"{stopped(remedy)} ({ABANDONED})")):
            yield
    except StoppedError as stop:
        raise ResumableError(remedy, stop.status) from None
    except KeyboardInterrupt:  # raised by work itself, or where signals are not ours to handle
        raise ResumableError(remedy, 130) from None


def stopped(remedy: str) -> str:
    """What is said of a command that was stopped."""
    return f"stopped; {remedy}"


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Warnings of libraries are not for people who run a command."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def log_to_stderr(layout: LogFormat, level: int = logging.INFO) -> None:
    """Show segpipe's log on stderr, in this form, from this level on."""
    library = logging.getLogger("segpipe")
    library.setLevel(level)
    for handler in [handler for handler in library.handlers if isinstance(handler, _StderrHandler)]:
        library.removeHandler(handler)
    handler = _StderrHandler()
    handler.addFilter(add_ids)
    handler.setFormatter(json_formatter() if layout == "json" else text_formatter())
    library.addHandler(handler)


def show_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result: aligned for people, or as JSON."""
    show(json_text(result) if as_json else "\n".join(result_lines(result)))


def json_text(result: object) -> str:
    """A result as JSON; infinite and missing numbers are null."""
    return to_json(result, indent=2, inf_nan_mode="null").decode()
