"""Which images seem to belong together, by their keys alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What cameras, sequences and patients are called in the names of public data sets.
PATTERNS = ("^.+(?=/)", "^[^_/]+(?=_)", "^.+(?=_)", "^[^-/]+(?=-)", r"^.*?[^\d](?=\d+$)")
SHOWN = 3


@dataclass(frozen=True)
class KeyGroups:
    """A regular expression for --group-by or --by, and what it makes of the keys: groups, the images of the
    largest, groups of which more than one split has images."""

    pattern: str
    groups: int
    largest: int
    in_several_splits: int


def suggested_groups(keys: Mapping[str, Sequence[str]]) -> tuple[KeyGroups, ...]:
    """What groups the keys (by split) may stand for: by patterns that match each key and gather some."""
    made = [groups for pattern in PATTERNS if (groups := _groups(keys, pattern))]
    # Two patterns that make as many groups, the largest as large, gather the images alike.
    alike = {(one.groups, one.largest, one.in_several_splits): one for one in reversed(made)}
    return tuple(one for one in made if one in alike.values())[:SHOWN]


def _groups(keys: Mapping[str, Sequence[str]], pattern: str) -> KeyGroups | None:
    compiled = re.compile(pattern)
    sizes: dict[str, int] = {}
    splits: dict[str, set[str]] = {}
    for split, of_split in keys.items():
        for key in of_split:
            if not (match := compiled.search(key)):
                return None
            sizes[match[0]] = sizes.get(match[0], 0) + 1
            splits.setdefault(match[0], set()).add(split)
    total = sum(sizes.values())
    # One group, or as good as one per image, says nothing; nor does the split's own name.
    if len(sizes) < 2 or len(sizes) > total / 2 or len(sizes) <= len(keys):
        return None
    several = sum(len(found) > 1 for found in splits.values())
    return KeyGroups(pattern, len(sizes), max(sizes.values()), several)
