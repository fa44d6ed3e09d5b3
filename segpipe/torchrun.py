"""This process among those that torchrun starts. Other launchers set RANK too, and mean other things."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TorchrunPlace:
    """rank: from 0 on, of count; local_rank: its number among those on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0


def torchrun_place() -> TorchrunPlace:
    """Where torchrun has put this process; one alone where it was not started by torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return TorchrunPlace()
    return TorchrunPlace(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
