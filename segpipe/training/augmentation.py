"""Random crops, shapes and light: what a labelled image teaches beyond itself; one batch a call."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from segpipe.models.bundle import ModelSpec, has_one_size

SCALE_RANGE = (0.6, 1.25)
ASPECT_RANGE = (0.9, 1.1)
ROTATION_DEGREES = 5.0
CROP_PIXELS = 160 * 224
LIGHT_RANGE = 0.2
BLUR_SHARE = 0.15
NOISE_SHARE = 0.15
NOISE_DEVIATION = 20.0


def crop_size(working_size: tuple[int, int]) -> tuple[int, int]:
    """The training crop of a working size (height, width): at most CROP_PIXELS, multiples of 32.

    Crops keep a training step cheap; the random scale still shows whole scenes.
    """
    height, width = working_size
    shrink = min(1.0, math.sqrt(CROP_PIXELS / (height * width)))
    return max(32, round(height * shrink / 32) * 32), max(32, round(width * shrink / 32) * 32)


def view_size(spec: ModelSpec) -> tuple[int, int]:
    """The size (height, width) of what the generator is trained on: a crop, where it takes other sizes."""
    return spec.working_size if has_one_size(spec) else crop_size(spec.working_size)


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def random_affine(
    count: int, working: tuple[int, int], crop: tuple[int, int], generator: Generator
) -> Tensor:
    """(count,2,3) maps from crop to image coordinates, both -1 to 1."""
    scale = torch.exp(_uniform(math.log(SCALE_RANGE[0]), math.log(SCALE_RANGE[1]), count, generator))
    aspect = torch.exp(_uniform(math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1]), count, generator) / 2)
    angle = _uniform(-math.radians(ROTATION_DEGREES), math.radians(ROTATION_DEGREES), count, generator)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    span_y = crop[0] / working[0] / scale * aspect
    span_x = crop[1] / working[1] / scale / aspect
    shift_y = (1 - span_y).clamp(min=0) * _uniform(-1, 1, count, generator)
    shift_x = (1 - span_x).clamp(min=0) * _uniform(-1, 1, count, generator)
    # Coordinates are relative to each side, so a rotation has to know the image's shape.
    tall = working[0] / working[1]
    top = torch.stack([span_x * angle.cos() * flip, -span_y * angle.sin() * tall, shift_x], dim=1)
    bottom = torch.stack([span_x * angle.sin() * flip / tall, span_y * angle.cos(), shift_y], dim=1)
    return torch.stack([top, bottom], dim=1)


def warp_images(images: Tensor, affine: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,3,H,W) uint8 -> (B,3,h,w) float 0 to 255, bilinear; black outside the image."""
    grid = functional.affine_grid(affine, [len(images), 3, *size], align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)


def warp_masks(masks: Tensor, affine: Tensor, size: tuple[int, int], ignore_index: int) -> Tensor:
    """(B,H,W) uint8 class indices -> (B,h,w) int64, nearest; ignore_index outside the image."""
    grid = functional.affine_grid(affine, [len(masks), 1, *size], align_corners=False)
    # Shifted by one because the sampler pads with 0, and 0 is a class.
    shifted = (masks.float() + 1).unsqueeze(1)
    sampled = functional.grid_sample(shifted, grid, mode="nearest", align_corners=False).squeeze(1).long()
    return torch.where(sampled == 0, ignore_index, sampled - 1)


def jitter_light(images: Tensor, generator: Generator) -> Tensor:
    """Random brightness, contrast and colour cast per image; (B,3,H,W) float 0 to 255, same range."""
    count = len(images)
    cast = torch.exp(_uniform(-LIGHT_RANGE, LIGHT_RANGE, count * 3, generator).view(count, 3, 1, 1) / 3)
    gain = torch.exp(_uniform(-LIGHT_RANGE, LIGHT_RANGE, count, generator)).view(count, 1, 1, 1)
    contrast = torch.exp(_uniform(-LIGHT_RANGE, LIGHT_RANGE, count, generator)).view(count, 1, 1, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (((images - mean) * contrast + mean) * gain * cast).clamp(0, 255)


def damage(images: Tensor, generator: Generator) -> Tensor:
    """Blur some images and add noise to some; (B,3,H,W) float 0 to 255, same range."""
    count = len(images)
    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    blur = (torch.rand(count, generator=generator) < BLUR_SHARE).view(count, 1, 1, 1)
    noisy = (torch.rand(count, generator=generator) < NOISE_SHARE).float().view(count, 1, 1, 1)
    deviation = noisy * NOISE_DEVIATION * torch.rand(count, generator=generator).view(count, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator) * deviation
    return (torch.where(blur, blurred, images) + noise).clamp(0, 255)


def augment(
    images: Tensor,
    masks: Tensor,
    crop: tuple[int, int],
    stride: int,
    ignore_index: int,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """One random view of each labelled image.

    images (B,3,H,W) uint8, masks (B,H,W) uint8 -> images (B,3,h,w) float 0 to 255 and masks
    (B, h/stride, w/stride) int64, on the grid that the generator's masks are judged on.
    """
    affine = random_affine(len(images), (images.shape[2], images.shape[3]), crop, generator)
    seen = damage(jitter_light(warp_images(images, affine, crop), generator), generator)
    mask_size = (crop[0] // stride, crop[1] // stride)
    return seen, warp_masks(masks, affine, mask_size, ignore_index)
