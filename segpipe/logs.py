"""Log records that say which run and shard they are about, as text for people or JSON for machines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

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


def json_formatter() -> logging.Formatter:
    """One JSON object per record: time (ISO 8601, UTC), level, logger, message, and the ids."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        json_ensure_ascii=False,
    )
