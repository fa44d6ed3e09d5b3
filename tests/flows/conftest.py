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

from segpipe import storage
from segpipe.confidence.policy import BadFraction, make_policy, to_json
from segpipe.models.bundle import (
    ModelCard,
    ModelSpec,
    build_networks,
    encode_weights,
    model_digest,
    save_bundle,
)
from segpipe.models.labeler import load_model

SPEC = ModelSpec(
    architecture="unet",
    classes=("road", "car", "sky"),
    ignore_index=255,
    working_size=(32, 48),
    mean=(0.5, 0.5, 0.5),
    standard_deviation=(0.25, 0.25, 0.25),
    shown_masks="hard",
)


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
    torch.manual_seed(0)
    generator, discriminator = (encode_weights(network) for network in build_networks(SPEC))
    card = ModelCard(
        model_id=model_digest(SPEC, generator, discriminator),
        spec=SPEC,
        training_data={},
        training_settings={},
        metrics={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
    )
    folder = tmp_path / "model"
    save_bundle(str(folder), card, generator, discriminator)
    return str(folder)


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
