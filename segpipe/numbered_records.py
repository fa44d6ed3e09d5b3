"""Small JSON records under numbers in one folder: each is created exclusively and never changed.

Whoever writes one has read all before it, so of two writers at once one is told that it was too late.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from segpipe import storage
from segpipe.concurrency import ordered_map
from segpipe.errors import NotFoundError, StorageError
from segpipe.redaction import redact
from segpipe.validation import first_problem, parse_json, told_version

_NUMBERED = re.compile(r"(\d{8})\.json")
_READERS = 16
Record = TypeVar("Record")


class _UnfitError(Exception):
    """What keeps a text from being a record, in words that go on after its name."""


def numbered(folder: str) -> dict[int, str]:
    """The URI of each record by its number, in order; empty when the folder does not exist. StorageError."""
    try:
        listed = list(storage.list_objects(folder))
    except NotFoundError:
        return {}
    found = {int(name[1]): item.uri for item in listed if (name := _NUMBERED.fullmatch(item.key))}
    return dict(sorted(found.items()))


def read_records(folder: str, kind: TypeAdapter[Record], version: int, remedy: str) -> dict[int, Record]:
    """The records by number, in order. StorageError that ends in `remedy` for one that cannot be read."""
    uris = numbered(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        texts = ordered_map(pool, storage.read_bytes, uris.values(), 2 * _READERS)
        return {
            number: _record(uri, text, kind, version, remedy)
            for (number, uri), text in zip(uris.items(), texts, strict=True)
        }


def add_record(folder: str, number: int, content: Mapping[str, Any], version: int) -> None:
    """Write a record. AlreadyExistsError when another writer has taken the number, StorageError."""
    text = json.dumps({"schema_version": version, **content}, indent=1, allow_nan=False)
    storage.create(storage.join(folder, f"{number:08d}.json"), text.encode())


def _record(uri: str, text: bytes, kind: TypeAdapter[Record], version: int, remedy: str) -> Record:
    try:
        return _parsed(text, kind, version)
    except _UnfitError as unfit:
        raise StorageError(f"{redact(uri)} {unfit}: {remedy}") from unfit


def _parsed(text: bytes, kind: TypeAdapter[Record], version: int) -> Record:
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _UnfitError(f"is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _UnfitError("does not hold a JSON object")
    found = content.pop("schema_version", None)
    if found != version:
        raise _UnfitError(f"has schema version {told_version(found)}, this segpipe reads {version}")
    try:
        return kind.validate_json(json.dumps(content))
    except ValidationError as error:
        raise _UnfitError(f"is damaged ({first_problem(error)})") from error
