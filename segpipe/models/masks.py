"""Between logits, probabilities, class indices and the mask channels a discriminator sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def class_logits(logits: Tensor) -> Tensor:
    """(B,1 or K,H,W) generator logits -> (B,K,H,W) whose softmax is the class probability."""
    if logits.shape[1] == 1:
        return torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits


def probabilities(logits: Tensor) -> Tensor:
    """Soft mask channels: sigmoid of one channel, softmax of K; same shape as the logits."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def mask_channels(labels: Tensor, channels: int, ignore_index: int) -> Tensor:
    """Hard mask channels (B,channels,H,W) float of class indices (B,H,W); ignored pixels are all zero."""
    known = labels != ignore_index
    if channels == 1:
        return ((labels == 1) & known).unsqueeze(1).float()
    batch, height, width = labels.shape
    blank = torch.zeros(batch, channels, height, width, device=labels.device)
    return blank.scatter_(1, labels.where(known, 0).long().unsqueeze(1), known.unsqueeze(1).float())


def labels_at_size(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Class indices (B,H,W) at another size (h, w), int64, each of the nearest pixel."""
    return functional.interpolate(labels[:, None].float(), size=size)[:, 0].long()


def hard_channels(logits: Tensor) -> Tensor:
    """Hard mask channels of the most probable class; the gradient passes straight through to the soft ones.

    Bengio et al. 2013: without it the discriminator would tell one-hot from soft, not right from wrong.
    """
    soft = probabilities(logits)
    labels = class_logits(logits).argmax(dim=1)
    hard = mask_channels(labels, logits.shape[1], ignore_index=-1)
    return hard + soft - soft.detach()
