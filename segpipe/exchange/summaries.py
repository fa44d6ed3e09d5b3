"""A table of kinds in words, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Kind(Protocol):
    """A line of a table."""

    @property
    def summary(self) -> str:
        """What it is, in a few words."""


def summaries(table: Mapping[str, Kind]) -> str:
    """Each name with what it is."""
    return "; ".join(f"{name}: {kind.summary}" for name, kind in table.items())
