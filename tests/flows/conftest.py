"""A Prefect server for the session, and a real but untrained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness
from random_model import write_random_model, write_trusting_policy


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """An ephemeral Prefect server; flows run without the heartbeat thread, which costs a second each."""
    with (
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        ),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """The folder of a model with random weights and no policy."""
    return write_random_model(str(tmp_path / "model"))


@pytest.fixture
def trusting_model(tiny_model: str) -> str:
    """The same model with a policy that accepts every mask."""
    return write_trusting_policy(tiny_model)
