"""A model where workers label for another process: whose policy holds is seen where the networks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_policy import make_policy
from random_model import write_random_model

from segpipe import storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import Policy, to_json
from segpipe.errors import ModelError, PolicyError
from segpipe.models.labeler import load_model
from segpipe.models.served import load_for_workers, load_planned

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_random_model(str(tmp_path / "model"))


def _give_policy(model: str, **computed: Any) -> Policy:
    """A policy beside the model, whose scores were computed so."""
    labeler = load_model(model, "cpu")
    policy = make_policy(
        np.arange(200.0),
        np.ones(200),
        labeler.model_id,
        BadFraction(0.5, 0.1),
        0.9,
        "f" * 64,
        "2026-11-23T00:00:00+00:00",
        model_digest=labeler.digest,
        **computed,
    )
    storage.put(storage.join(model, "policy.json"), to_json(policy).encode())
    return policy


@pytest.mark.parametrize(
    ("computed", "is_kept"),
    [
        ({"device": "cuda", "precision": "bfloat16"}, True),
        ({"device": "cuda", "precision": "float32"}, True),
        ({"device": "cpu", "precision": "float32"}, True),
        ({"device": "cpu", "precision": "bfloat16"}, False),
        ({}, True),
    ],
)
def test_the_policy_of_a_gpu_is_kept_by_a_driver_whose_cpu_computes_otherwise(
    model: str, computed: dict[str, Any], is_kept: bool
) -> None:
    policy = _give_policy(model, **computed)
    driver = load_for_workers(model)
    assert (driver.policy, driver.device) == (policy if is_kept else None, "cpu")


def test_a_worker_refuses_a_policy_of_another_precision_and_takes_one_of_its_own(model: str) -> None:
    digest = load_model(model, "cpu").digest
    fitting = _give_policy(model, device="cuda", precision="float32")
    assert load_planned(model, digest, to_json(fitting), "cpu").policy == fitting
    other = _give_policy(model, device="cuda", precision="bfloat16")
    with pytest.raises(PolicyError, match="calibrated in bfloat16 and this device computes in float32"):
        load_planned(model, digest, to_json(other), "cpu")
    assert load_planned(model, digest, None, "cpu").policy is None
    with pytest.raises(ModelError, match=f"the run was planned with {'0' * 64}"):
        load_planned(model, "0" * 64, None, "cpu")
