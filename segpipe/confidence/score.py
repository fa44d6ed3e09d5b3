"""What the discriminator says about a mask: one score per image, one confidence per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_score(logits: Tensor) -> Tensor:
    """Adversarial score of each image: the mean of the discriminator's logits map.

    `logits` is (B, 1, h, w), higher meaning more like a true mask; returns (B,) float32, unbounded.
    A mean of logits, not of probabilities, still ranks images where the sigmoid has saturated.
    """
    return logits.float().mean(dim=(1, 2, 3))


def class_fractions(mask: Tensor, n_classes: int) -> Tensor:
    """Share of each image's pixels that shows each class.

    `mask` is (B, H, W) integer class indices; returns (B, K) float32 whose rows sum to 1. Raises ValueError
    when a class is outside 0..K-1.
    """
    return _pixels_per_class(mask, n_classes).float() / mask[0].numel()


def class_confidences(mask: Tensor, logits: Tensor, n_classes: int) -> Tensor:
    """Mean discriminator probability over the pixels of each predicted class.

    `mask` is (B, H, W) integer class indices and `logits` the discriminator's (B, 1, h, w) map, whose
    sigmoid is interpolated to the mask's grid; returns (B, K) float32 from 0 to 1, NaN where a class is not
    predicted. Raises ValueError when a class is outside 0..K-1.
    """
    probability = F.interpolate(
        torch.sigmoid(logits.float()), size=mask.shape[1:], mode="bilinear", align_corners=False
    )
    pixels = _pixels_per_class(mask, n_classes)
    index = _image_and_class(mask, n_classes)
    total = torch.bincount(index, weights=probability.flatten(), minlength=pixels.numel())
    return total.view_as(pixels).float() / pixels  # 0 / 0 is the NaN of an absent class


def _pixels_per_class(mask: Tensor, n_classes: int) -> Tensor:
    counts = torch.bincount(_image_and_class(mask, n_classes), minlength=len(mask) * n_classes)
    return counts.view(len(mask), n_classes)


def _image_and_class(mask: Tensor, n_classes: int) -> Tensor:
    if not 0 <= int(mask.min()) <= int(mask.max()) < n_classes:
        raise ValueError(f"mask holds class {int(mask.max())}: expected 0..{n_classes - 1}")
    first = torch.arange(len(mask), device=mask.device) * n_classes
    return (mask + first[:, None, None]).flatten()
