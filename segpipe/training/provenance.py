"""What model.json tells of how a model came to be, whoever trained its generator."""

from __future__ import annotations

import importlib.metadata
import platform

from segpipe.confidence.score import SCORE_PARTS
from segpipe.models.judge import Judge

PACKAGES = ("segpipe", "torch", "numpy", "pillow")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide what a model computes."""
    installed = {name: importlib.metadata.version(name) for name in (*PACKAGES, *others)}
    return {"python": platform.python_version(), **installed}


def score_combination(judge: Judge) -> dict[str, float]:
    """The fit of the routing score, by the names of its parts."""
    return dict(zip(("bias", *SCORE_PARTS), judge.combination.tolist(), strict=True))
