"""What a name says about belonging together: the one rule for the group of an image key or an image URI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import regex

from segpipe.errors import PatternError
from segpipe.printable import printable

_BUCKET = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*/")
LONGEST_SEARCH = 1.0  # second of processor time; one of all but a few patterns takes microseconds


def group_of(name: str, pattern: str) -> str | None:
    """What a name belongs to: the pattern's first match in it, or that match's first group.

    None where the pattern has no match, or an empty one. `pattern` is a regular expression; re.error if not.
    PatternError where it tries so many ways to match the name that it would not end.
    """
    expression = compiled(pattern)
    try:
        match = expression.search(name, timeout=LONGEST_SEARCH)
    except TimeoutError:
        raise PatternError(
            f"the regular expression {quoted(pattern)} does not end on the name {quoted(name)}: it can match "
            "the same part in too many ways; give one that leaves no choice, such as 'cam\\d+'"
        ) from None
    return (match and match[1 if expression.groups else 0]) or None


def group_of_address(address: str, pattern: str) -> str | None:
    """What an image belongs to, wherever in its address its key begins: as group_of, of each of its ends.

    None where they do not agree: in cam1-archive/cam3_7.png a folder's name and the image's own each name a
    camera, and nothing tells which is meant. A bucket's name is part of no key, so that it counts only where
    nothing below it names a group. PatternError as group_of.
    """
    bucket = _BUCKET.match(address)
    key_begins = bucket.end() if bucket else 0
    starts = [0, *(slash.end() for slash in re.finditer("/", address))]
    in_key = _groups(address, (start for start in starts if start >= key_begins), pattern)
    groups = in_key or _groups(address, (start for start in starts if start < key_begins), pattern)
    return groups.pop() if len(groups) == 1 else None


def _groups(name: str, starts: Iterable[int], pattern: str) -> set[str]:
    """What the ends of a name belong to that begin there."""
    return {group for start in starts if (group := group_of(name[start:], pattern)) is not None}


def group_if_known(search: Callable[[str, str], str | None], name: str, pattern: str) -> str | None:
    """What the search, group_of or group_of_address, finds; None as well where it would not end.

    For work that one name must not stop: whoever fills a bucket names the images.
    """
    with suppress(PatternError):
        return search(name, pattern)
    return None


def quoted(text: str) -> str:
    """A pattern or a name as a message shows it: as it was typed, so that it can be typed again."""
    return f"'{printable(text)}'"


def compiled(pattern: str) -> Any:
    """The regular expression, of those that Python's own module takes; re.error if it is none.

    Both modules keep what they compiled: this is asked for each of many names.
    """
    re.compile(pattern)
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise re.error(str(error)) from None
