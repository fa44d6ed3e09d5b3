"""From class logits on the networks' grid to a mask at the image's own size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segpipe.models.raised_mask import raise_mask

# Logits raised to full size at once on a device: 16 million floats, 64 MB, whatever the image's size.
RAISED_AT_ONCE = 16_000_000


@torch.inference_mode()
def full_size_mask(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(K,h,w) float32 logits -> HxW uint8 class indices at size (H, W): the argmax of bilinear logits.

    labels (h,w) uint8: the argmax on the logits' own grid.
    """
    if tuple(labels.shape) == size:
        return labels.cpu().numpy()
    if logits.device.type == "cpu":
        return _on_cpu(logits, labels, size)
    return _on_device(logits, size).cpu().numpy()


def _on_cpu(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    mask = np.empty(size, np.uint8)
    raise_mask(logits.permute(1, 2, 0).contiguous().numpy(), labels.contiguous().numpy(), mask)
    return mask


def _on_device(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """In bounded memory: some classes at a time."""
    step = max(1, RAISED_AT_ONCE // (size[0] * size[1]))
    best = torch.full(size, -torch.inf, device=logits.device)
    mask = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), step):
        raised = functional.interpolate(
            logits[None, first : first + step].contiguous(), size=size, mode="bilinear", align_corners=False
        )[0]
        value, index = raised.max(dim=0)
        better = value > best
        mask = torch.where(better, (index + first).to(torch.uint8), mask)
        best = torch.maximum(best, value)
    return mask
