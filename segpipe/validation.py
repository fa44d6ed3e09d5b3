"""What is wrong with a foreign text, as part of a message."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from segpipe.printable import printable


def parse_json(text: str | bytes) -> Any:
    """What somebody else's JSON says. Raises ValueError, also for a name with two values, of which one would
    be lost; RecursionError."""
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return content


def first_problem(error: ValidationError) -> str:
    """The first problem as "place: what", without the value at fault, which may be a secret."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return printable(f"{where}: {first['msg']}" if where else first["msg"])


def told_version(version: object) -> str:
    """A version as a foreign text tells it: a number, or that it is none; anything else may be endless."""
    told = version is None or (isinstance(version, int) and abs(version) < 1_000_000)
    return str(version) if told else "unknown"
