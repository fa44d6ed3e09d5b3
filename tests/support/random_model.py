"""A real but untrained model, for tests of everything around it."""

from __future__ import annotations

import torch
from plain_policy import make_policy

from segpipe import storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import to_json
from segpipe.digests import shown
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
    architecture="unet-ibn",
    classes=("road", "car", "sky"),
    ignore_index=255,
    working_size=(32, 48),
    mean=(0.5, 0.5, 0.5),
    standard_deviation=(0.25, 0.25, 0.25),
    shown_masks="hard",
)


def write_random_model(folder: str, classes: tuple[str, ...] = SPEC.classes, **changes: object) -> str:
    """Write the bundle of a model with random weights and no policy; gives the folder back.

    changes: of the spec.
    """
    torch.manual_seed(0)
    spec = SPEC.model_copy(update={"classes": classes, **changes})
    generator, discriminator = (encode_weights(network) for network in build_networks(spec))
    digest = model_digest(spec, generator, discriminator)
    card = ModelCard(
        model_id=shown(digest),
        digest=digest,
        spec=spec,
        training_data={},
        training_settings={},
        metrics={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
    )
    save_bundle(folder, card, generator, discriminator)
    return folder


def write_trusting_policy(folder: str) -> str:
    """Give the model a policy that accepts every mask; gives the folder back."""
    policy = make_policy(
        torch.linspace(-100, 100, 200).tolist(),
        [1.0] * 200,
        load_model(folder, "cpu").model_id,
        BadFraction(0.5, 0.1),
        0.9,
        "f" * 64,
        "2026-01-01T00:00:00+00:00",
        candidate_thresholds=[-90.0],
    )
    storage.put(storage.join(folder, "policy.json"), to_json(policy).encode())
    return folder
