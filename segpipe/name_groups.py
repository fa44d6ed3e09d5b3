"""What a name says about belonging together: the one rule for the group of an image key or an image URI."""

from __future__ import annotations

import re


def group_of(name: str, pattern: str) -> str | None:
    """What a name belongs to: the pattern's first match in it, or that match's first group.

    None where the pattern has no match, or an empty one. `pattern` is a regular expression; re.error if not.
    """
    compiled = re.compile(pattern)  # which keeps what it compiled: this is asked for each of many names
    match = compiled.search(name)
    return (match and match[1 if compiled.groups else 0]) or None
