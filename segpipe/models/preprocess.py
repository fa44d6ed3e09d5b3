"""What an image is made into before a network sees it; the same in training and in labelling."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

# ImageNet's channel statistics (0 to 1), the field's common default; stored in every bundle.
MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """HxWx3 uint8 -> working size (height, width), antialiased bilinear."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """HxW uint8 class indices -> (height, width), nearest."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def normalise(images: Tensor, mean: tuple[float, ...], standard_deviation: tuple[float, ...]) -> Tensor:
    """(B,3,H,W) 0 to 255 -> float32 of channel mean 0 and deviation 1 over the data, channels last."""
    # As rows of width times 3 values: torch is four times as slow where the innermost dimension is 3.
    width = images.shape[3]
    scale, shift = (_as_row(values, width, images.device) for values in (standard_deviation, mean))
    rows = images.permute(0, 2, 3, 1).flatten(2).to(torch.float32, copy=True)
    return rows.sub_(shift).div_(scale).unflatten(2, (width, 3)).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _as_row(channels: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """(width * 3,) of 0 to 255; kept, since a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return (torch.tensor(channels) * 255.0).repeat(width).to(device)


def shown_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image on the grid of the masks, as the discriminator sees it; (B,3,H,W) -> (B,3,h,w)."""
    # Where the size is halved bilinear is the mean of four pixels, and faster than torch's pooling.
    same = image.shape[-2:] == size
    return image if same else functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
