"""What a name says about belonging together: the one rule for the group of an image key or an image URI."""

from __future__ import annotations

import re
from typing import Any

import regex

from segpipe.errors import PatternError

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
            f"the regular expression {pattern!r} does not end on the name {name!r}: it can match the same "
            "part in too many ways; give one that leaves no choice, such as 'cam\\d+'"
        ) from None
    return (match and match[1 if expression.groups else 0]) or None


def compiled(pattern: str) -> Any:
    """The regular expression, of those that Python's own module takes; re.error if it is none.

    Both modules keep what they compiled: this is asked for each of many names.
    """
    re.compile(pattern)
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise re.error(str(error)) from None
