"""One pass of generator and discriminator over a batch, and masks at each image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segpipe.models.bundle import Bundle
from segpipe.models.device import autocast
from segpipe.models.masks import class_logits, mask_channels, probabilities
from segpipe.models.preprocess import normalise, resize_image, shown_image

# Logits raised to full size at once: 16 million floats, 64 MB, whatever the image's size.
RAISED_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class Prediction:
    """logits (B,K,h,w) of the classes; verdict (B,1,a,b) the discriminator's raw map; both float32."""

    logits: Tensor
    verdict: Tensor


def prepare(bundle: Bundle, images: Sequence[np.ndarray], device: str) -> Tensor:
    """Images HxWx3 uint8 of any sizes -> (B,3,h,w) normalised at the working size, on the device."""
    resized = np.stack([resize_image(image, bundle.spec.working_size) for image in images])
    batch = torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)
    return normalise(batch, bundle.spec.mean, bundle.spec.standard_deviation)


@torch.inference_mode()
def predict(bundle: Bundle, batch: Tensor, device: str) -> Prediction:
    """Class logits and the discriminator's verdict on the mask they make."""
    with autocast(device):
        logits = bundle.generator(batch).float()
        verdict = bundle.discriminator(
            shown_image(batch, (logits.shape[2], logits.shape[3])), _shown_mask(bundle, logits)
        ).float()
    return Prediction(class_logits(logits), verdict)


def _shown_mask(bundle: Bundle, logits: Tensor) -> Tensor:
    if bundle.spec.shown_masks == "soft":
        return probabilities(logits)
    labels = class_logits(logits).argmax(dim=1)
    return mask_channels(labels, logits.shape[1], ignore_index=-1)


@torch.inference_mode()
def full_size_mask(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(K,h,w) logits -> HxW uint8 class indices at size (H, W), bilinear, in bounded memory."""
    step = max(1, RAISED_AT_ONCE // (size[0] * size[1]))
    best: Tensor | None = None
    mask = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), step):
        part = functional.interpolate(
            logits[None, first : first + step].contiguous(), size=size, mode="bilinear", align_corners=False
        )[0]
        value, index = part.max(dim=0)
        if best is None:
            best, mask = value, index.to(torch.uint8)
        else:
            better = value > best
            mask[better] = (index[better] + first).to(torch.uint8)
            best = torch.maximum(best, value)
    return mask.cpu().numpy()
