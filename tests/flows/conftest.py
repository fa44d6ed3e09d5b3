"""A Prefect server for the session, and a real but untrained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness
from random_model import write_random_model

from segpipe import storage
from segpipe.confidence.policy import BadFraction, make_policy, to_json
from segpipe.models.labeler import load_model


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
    model_id = load_model(tiny_model, "cpu").model_id
    scores = torch.linspace(-100, 100, 200).tolist()
    policy = make_policy(
        scores,
        [1.0] * 200,
        model_id,
        BadFraction(0.5, 0.1),
        0.9,
        "f" * 64,
        "2026-01-01T00:00:00+00:00",
        candidate_thresholds=[-90.0],
    )
    storage.put(storage.join(tiny_model, "policy.json"), to_json(policy).encode())
    return tiny_model
