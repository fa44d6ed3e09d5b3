"""What a digest covers (contract C13): a field that comes later changes no id of what was there before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

SHOWN_DIGITS = 12


def covered(content: Mapping[str, Any], optional: Collection[str]) -> dict[str, Any]:
    """The content without those `optional` fields that are absent: None, or empty.

    Digests and files hold this and nothing else. Fields of a format's first version are never optional, so
    None in one of them is covered; every later field is optional, and absent in what was written before it.
    """
    return {name: value for name, value in content.items() if name not in optional or not _is_absent(value)}


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | tuple | list | dict) and not value)


def shown(digest: str) -> str:
    """The first 12 digits of a digest: for people and paths, never to compare by."""
    return digest[:SHOWN_DIGITS]
