"""What `segpipe verify` has found: all of it counted, the first of it told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["part", "chain", "run", "policy", "row", "double", "mask", "review", "copy"]
EXAMPLES = 100  # of findings that are told in full; all are counted


@dataclass(frozen=True)
class Finding:
    """What in OUTPUT no labelling run has left so: its kind, where it is, and what is odd about it."""

    kind: Kind
    place: str
    what: str


@dataclass
class Findings:
    """Counts by kind, and the first findings."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)

    def add(self, kind: Kind, place: str, what: str) -> None:
        """Count a finding, and keep it if it is one of the first."""
        self.counts[kind] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(Finding(kind, place, what))
