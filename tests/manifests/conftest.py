"""Manifest rows with values that a test need not care about."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from segpipe.manifests.schema import Row

DEFAULTS: dict[str, Any] = {
    "image_uri": "/bucket/a.jpg",
    "image_etag": "e1",
    "image_bytes": 10,
    "image_width": 4,
    "image_height": 3,
    "mask_uri": "/out/masks/m/a.jpg.png",
    "mask_sha256": "ab",
    "decision": "accepted",
    "reason": "confident",
    "confidence": 0.5,
    "discriminator_score": 1.0,
    "class_fractions": [0.75, 0.25],
    "class_confidences": [0.5, None],
    "audit": False,
    "inclusion_probability": 0.0,
    "model_id": "m",
    "policy_id": None,
    "run_id": "r",
    "shard": 0,
    "labeled_at": datetime(2026, 11, 23, 12, tzinfo=UTC),
    "error": None,
}


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A row with the given values and defaults elsewhere."""
    return lambda **values: Row(**{**DEFAULTS, **values})
