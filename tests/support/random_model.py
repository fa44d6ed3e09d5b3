"""A real but untrained model, for tests of everything around it."""

from __future__ import annotations

import torch

from segpipe.models.bundle import (
    ModelCard,
    ModelSpec,
    build_networks,
    encode_weights,
    model_digest,
    save_bundle,
)

SPEC = ModelSpec(
    architecture="unet",
    classes=("road", "car", "sky"),
    ignore_index=255,
    working_size=(32, 48),
    mean=(0.5, 0.5, 0.5),
    standard_deviation=(0.25, 0.25, 0.25),
    shown_masks="hard",
)


def write_random_model(folder: str, classes: tuple[str, ...] = SPEC.classes) -> str:
    """Write the bundle of a model with random weights and no policy; gives the folder back."""
    torch.manual_seed(0)
    spec = SPEC.model_copy(update={"classes": classes})
    generator, discriminator = (encode_weights(network) for network in build_networks(spec))
    card = ModelCard(
        model_id=model_digest(spec, generator, discriminator),
        spec=spec,
        training_data={},
        training_settings={},
        metrics={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
    )
    save_bundle(folder, card, generator, discriminator)
    return folder
