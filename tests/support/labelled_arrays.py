"""Labelled images that lie in memory, in the form in which training draws from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from segpipe.models.bundle import ModelSpec
from segpipe.training.labelled_pixels import LabelledPixels
from segpipe.training.rare_classes import rare_classes, sample_places

IGNORED = 255


def plain_spec(
    classes: tuple[str, ...], working_size: tuple[int, int], ignore_index: int = IGNORED
) -> ModelSpec:
    """What a U-Net of these classes is told of its images; all of an image is fitted to working_size."""
    return ModelSpec(
        architecture="unet",
        classes=classes,
        ignore_index=ignore_index,
        working_size=working_size,
        mean=(0.5, 0.5, 0.5),
        standard_deviation=(0.25, 0.25, 0.25),
        shown_masks="hard",
        second_look="half",
        belief_kind="plain",
    )


def in_memory(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], n_classes: int, fitted: bool = True
) -> LabelledPixels:
    """images 3xHxW uint8 and masks HxW uint8, as `load_pixels` would give them at this size."""
    counts = [np.bincount(mask.ravel(), minlength=256)[:n_classes] for mask in masks]
    places = [
        sample_places(mask, count, np.random.default_rng(row))
        for row, (mask, count) in enumerate(zip(masks, counts, strict=True))
    ]
    return LabelledPixels(
        pixels=lambda row: (images[row], masks[row]),
        sizes=torch.tensor([mask.shape for mask in masks]),
        weights=torch.ones(len(masks), dtype=torch.float64),
        counts=torch.from_numpy(np.sum(counts, axis=0)),
        rare=rare_classes(np.sum(counts, axis=0), places),
        ignore_index=IGNORED,
        fitted=fitted,
        cached_bytes=0,
    )
