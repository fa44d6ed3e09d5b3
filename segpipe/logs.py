"""Log records that say which run and shard they are about, as text for people or JSON for machines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from segpipe.printable import printable, printable_lines

_IDS: ContextVar[Mapping[str, Any]] = ContextVar("segpipe_log_ids", default=MappingProxyType({}))


@contextmanager
def log_ids(**ids: Any) -> Iterator[None]:
    """Let every record that is logged meanwhile carry these; threads take a copy of the context with them."""
    token = _IDS.set({**_IDS.get(), **ids})
    try:
        yield
    finally:
        _IDS.reset(token)


def add_ids(record: logging.LogRecord) -> bool:
    """A filter for handlers: run_id and shard become attributes of the record."""
    for name, value in _IDS.get().items():
        setattr(record, name, value)
    return True


class _PrintableText(logging.Formatter):
    """The message as one line that steers no terminal; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _PrintableJson(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def text_formatter() -> logging.Formatter:
    """The message alone, a line for people."""
    return _PrintableText()


def json_formatter() -> logging.Formatter:
    """One JSON object per record: time (ISO 8601, UTC), level, logger, message, and the ids."""
    return _PrintableJson(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        json_ensure_ascii=False,
    )
