"""What model.json tells of how a model came to be, whoever trained its generator."""

from __future__ import annotations

import importlib.metadata
import platform

from segpipe.confidence.score import SCORE_PARTS
from segpipe.models.judge import Judge

PACKAGES = ("segpipe", "torch", "numpy", "pillow")
# What computes the networks of others, by their architecture.
FOREIGN_PACKAGES = {"transformers": ("transformers",), "onnx": ("onnx", "onnxruntime")}


def versions(architecture: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide what a model of the architecture computes."""
    names = (*PACKAGES, *FOREIGN_PACKAGES.get(architecture, ()))
    installed = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **installed}


def score_combination(judge: Judge) -> dict[str, float]:
    """The fit of the routing score, by the names of its parts."""
    return dict(zip(("bias", *SCORE_PARTS), judge.combination.tolist(), strict=True))
