"""What a check found, in one line with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination; remedy is None where there is nothing to do."""

    check: str
    status: Status
    found: str
    remedy: str | None = None

    def line(self) -> str:
        """For people."""
        return f"{self.status:<5} {self.check:<18} {self.found}" + (f"; {self.remedy}" if self.remedy else "")
