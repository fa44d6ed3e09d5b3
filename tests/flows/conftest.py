"""A real but untrained model."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_model import write_random_model, write_trusting_policy


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """The folder of a model with random weights and no policy."""
    return write_random_model(str(tmp_path / "model"))


@pytest.fixture
def trusting_model(tiny_model: str) -> str:
    """The same model with a policy that accepts every mask."""
    return write_trusting_policy(tiny_model)
