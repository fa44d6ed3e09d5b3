"""The generator's losses on pixels: class-balanced cross-entropy and Dice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# A class of 0.1% of the pixels needs more than 5 to be learnt early, and learns no faster from 50.
LARGEST_WEIGHT = 20.0


def class_weights(pixel_counts: Tensor) -> Tensor:
    """(K,) pixel counts -> (K,) weights: inverse square root of the frequency, pixel mean 1, at most 20.

    Classes without a pixel weigh 0. The square root keeps rare classes audible without wrecking precision.
    """
    frequency = pixel_counts.double() / pixel_counts.sum().clamp(min=1)
    present = frequency > 0
    raw = torch.where(present, frequency.clamp(min=1e-12).rsqrt(), 0.0)
    scaled = raw / (raw * frequency).sum().clamp(min=1e-12)
    return scaled.clamp(max=LARGEST_WEIGHT).float()


def pixel_loss(logits: Tensor, labels: Tensor, weights: Tensor, ignore_index: int) -> Tensor:
    """Class-balanced cross-entropy plus Dice; logits (B,K,H,W), labels (B,H,W) class indices."""
    total = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum"
    )
    known = labels != ignore_index
    # Divided here, not by torch: a batch without one labelled pixel is 0, not NaN.
    cross_entropy = total / (weights[labels.where(known, 0)] * known).sum().clamp(min=1.0)
    return cross_entropy + dice_loss(logits.softmax(dim=1), labels, ignore_index)


def dice_loss(probabilities: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """1 - mean soft Dice over the classes in the batch's truth (Milletari et al. 2016); 0 without any."""
    known = (labels != ignore_index).unsqueeze(1)
    n_classes = probabilities.shape[1]
    truth = functional.one_hot(labels.where(known[:, 0], 0), n_classes).permute(0, 3, 1, 2) * known
    shown = probabilities * known
    overlap = (shown * truth).sum(dim=(0, 2, 3))
    total = shown.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    dice = (2 * overlap + 1.0) / (total + 1.0)
    return (1 - dice)[present].sum() / present.sum().clamp(min=1)
