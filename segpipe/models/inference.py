"""One pass of generator and judge over a batch, and masks at each image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segpipe.confidence.score import adversarial_score
from segpipe.models.bundle import Bundle
from segpipe.models.device import autocast
from segpipe.models.judge import show
from segpipe.models.masks import class_logits, mask_channels, probabilities
from segpipe.models.preprocess import normalise, resize_image, shown_image
from segpipe.models.verdict import Verdict, give_verdict

# Logits raised to full size at once: 16 million floats, 64 MB, whatever the image's size.
RAISED_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class Prediction:
    """logits (B,K,h,w) of the classes, float32; verdict: what the judge says about the mask they make."""

    logits: Tensor
    verdict: Verdict


def prepare(bundle: Bundle, images: Sequence[np.ndarray], device: str) -> Tensor:
    """Images HxWx3 uint8 of any sizes -> (B,3,h,w) normalised at the working size, on the device."""
    resized = np.stack([resize_image(image, bundle.spec.working_size) for image in images])
    batch = torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)
    return normalise(batch, bundle.spec.mean, bundle.spec.standard_deviation)


def predict(bundle: Bundle, batch: Tensor, device: str) -> Prediction:
    """Class logits and the verdict on the mask they make: one pass of generator and judge."""
    return judge_masks(bundle, batch, generate(bundle, batch, device), device)


@torch.inference_mode()
def generate(bundle: Bundle, batch: Tensor, device: str) -> Tensor:
    """The generator's logits (B,1 or K,h,w), float32, of a prepared batch."""
    with autocast(device):
        return bundle.generator(batch).float()


@torch.inference_mode()
def judge_masks(bundle: Bundle, batch: Tensor, generated: Tensor, device: str) -> Prediction:
    """The generator's logits of a batch as class logits, with the verdict on the mask they make."""
    judge, logits = bundle.discriminator.judge, class_logits(generated)
    with autocast(device):
        shown = show(logits)
        judgement = judge(shown_image(batch, (logits.shape[2], logits.shape[3])), shown)
    return Prediction(logits, give_verdict(judge, judgement, shown))


@torch.inference_mode()
def raw_adversarial_score(bundle: Bundle, batch: Tensor, generated: Tensor, device: str) -> Tensor:
    """(B,) what the discriminator of the game alone would say of the generator's logits of a batch: it labels
    nothing, but is the yardstick."""
    image = shown_image(batch, (generated.shape[2], generated.shape[3]))
    with autocast(device):
        realness = bundle.discriminator.adversary(image, _played_mask(bundle, generated))
    return adversarial_score(realness)


def _played_mask(bundle: Bundle, logits: Tensor) -> Tensor:
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
