"""What an image is made into before a network sees it; the same in training and in labelling."""

from __future__ import annotations

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
    scale = torch.tensor(standard_deviation, device=images.device).view(1, 3, 1, 1) * 255.0
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255.0
    return ((images.float() - shift) / scale).contiguous(memory_format=torch.channels_last)


def shown_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image on the grid of the masks, as the discriminator sees it; (B,3,H,W) -> (B,3,h,w)."""
    return image if image.shape[-2:] == size else functional.adaptive_avg_pool2d(image, size)
