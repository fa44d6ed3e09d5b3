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
LIGHT_RANGE = 0.4
CAST_RANGE = 0.2
MOST_SATURATION = 1.8
# Of the images, that get another gamma, that get another saturation, and that borrow another's colours.
CHANGED_SHARE = 0.5
# Of the images without colour, and how far their channels lie apart on average, in grey levels, at the most.
NEGATIVE_SHARE = 0.05
GREY_SPREAD = 1.0
# Of logarithms: below it an image is one colour; and how much its own may grow, that noise stays noise.
SMALLEST_DEVIATION, MOST_STRETCH = 1e-3, 3.0
BLUR_SHARE = 0.15
NOISE_SHARE = 0.15
NOISE_DEVIATION = 20.0
# How far from a crop's middle (1: at its edge) a pixel is put that it is placed around, and may end up where
# the crop would leave the image.
FOCUS_RANGE, FOCUS_EDGE = 0.75, 0.95


def crop_size(working_size: tuple[int, int]) -> tuple[int, int]:
    """The training crop of a working size (height, width): at most CROP_PIXELS, multiples of 32.

    Crops keep a training step cheap; the random scale still shows whole scenes.
    """
    height, width = working_size
    shrink = min(1.0, math.sqrt(CROP_PIXELS / (height * width)))
    return max(32, round(height * shrink / 32) * 32), max(32, round(width * shrink / 32) * 32)


def view_size(spec: ModelSpec) -> tuple[int, int]:
    """The size (height, width) of what the generator is trained on: a crop, where it takes other sizes."""
    size = spec.tile or spec.working_size
    return size if has_one_size(spec) else crop_size(size)


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def random_affine(
    sizes: Tensor, crop: tuple[int, int], generator: Generator, focus: Tensor | None = None
) -> Tensor:
    """(B,2,3) maps from crop to image coordinates, both -1 to 1.

    sizes (B,2): heights and widths of the images, which the crop stays in unless it is larger. focus (B,2):
    row and column of a pixel that it shows somewhere; NaN, or None: it lies anywhere.
    """
    count = len(sizes)
    scale = torch.exp(_uniform(math.log(SCALE_RANGE[0]), math.log(SCALE_RANGE[1]), count, generator))
    aspect = torch.exp(_uniform(math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1]), count, generator) / 2)
    angle = _uniform(-math.radians(ROTATION_DEGREES), math.radians(ROTATION_DEGREES), count, generator)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    height, width = sizes.double().unbind(dim=1)
    span_y = (crop[0] / height).float() * scale.reciprocal() * aspect
    span_x = (crop[1] / width).float() * scale.reciprocal() / aspect
    room = torch.stack([1 - span_x, 1 - span_y], dim=1).clamp(min=0)
    shift_y = _uniform(-1, 1, count, generator)
    shift_x = _uniform(-1, 1, count, generator)
    shift = room * torch.stack([shift_x, shift_y], dim=1)
    # Coordinates are relative to each side, so a rotation has to know the image's shape.
    tall = (height / width).float()
    top = torch.stack([span_x * angle.cos() * flip, -span_y * angle.sin() * tall], dim=1)
    bottom = torch.stack([span_x * angle.sin() * flip / tall, span_y * angle.cos()], dim=1)
    turned = torch.stack([top, bottom], dim=1)
    if focus is not None:
        around = _shift_to(focus, sizes, turned, room, generator)
        shift = torch.where(around.isnan(), shift, around)
    return torch.cat([turned, shift.unsqueeze(2)], dim=2)


def _shift_to(focus: Tensor, sizes: Tensor, turned: Tensor, room: Tensor, generator: Generator) -> Tensor:
    """(B,2) shifts, x and y, that bring pixels (B,2) somewhere into view; NaN where they are."""
    seen_at = _uniform(-FOCUS_RANGE, FOCUS_RANGE, 2 * len(sizes), generator).view(-1, 2, 1)
    place = ((2 * focus + 1) / sizes - 1).flip(1).float().unsqueeze(2)
    within = (place - turned @ seen_at).squeeze(2).clamp(-room, room).unsqueeze(2)
    # A crop that leans does not show the corners of the image unless it leaves it.
    nearest = torch.linalg.solve(turned, place - within).clamp(-FOCUS_EDGE, FOCUS_EDGE)
    return (place - turned @ nearest).squeeze(2)


def window_size(crop: tuple[int, int]) -> tuple[int, int]:
    """The smallest window (height, width) of an image that has all that a random crop shows."""
    longest = math.exp(math.log(max(ASPECT_RANGE[1], 1 / ASPECT_RANGE[0])) / 2) / SCALE_RANGE[0]
    leaning = math.sin(math.radians(ROTATION_DEGREES))
    height, width = longest * crop[0], longest * crop[1]
    # A pixel on each side for what lies between two, and one for where the window begins.
    return math.ceil(height + leaning * width) + 3, math.ceil(width + leaning * height) + 3


def window_affine(affine: Tensor, sizes: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of maps from crop to image coordinates: the corners (B,2), row and column, of windows around what they
    show, and the maps (B,2,3) from crop to window coordinates."""
    whole = sizes.flip(1).double()  # x before y, as in the maps
    part = torch.tensor(window[::-1], dtype=torch.float64)
    corners = ((affine[:, :, 2].double() + 1) / 2 * whole - part / 2).round()
    shift = ((affine[:, :, 2].double() + 1) * whole - 2 * corners) / part - 1
    turned = affine[:, :, :2].double() * (whole / part).unsqueeze(2)
    return corners.flip(1).long(), torch.cat([turned, shift.unsqueeze(2)], dim=2).float()


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
    """Random gamma, contrast, brightness, colour cast and saturation per image; (B,3,H,W) float 0 to 255.

    Another day and another camera look as different as that, and no labels are needed to learn it.
    """
    count = len(images)
    gamma = _for_some(_factor(LIGHT_RANGE, count, generator), generator)
    lit = 255 * (images / 255) ** gamma
    cast = _factor(CAST_RANGE, count * 3, generator).view(count, 3, 1, 1)
    gain, contrast = (_factor(LIGHT_RANGE, count, generator) for _ in range(2))
    mean = lit.mean(dim=(1, 2, 3), keepdim=True)
    lit = ((lit - mean) * contrast + mean) * gain * cast
    saturation = _for_some(_uniform(0, MOST_SATURATION, count, generator).view(-1, 1, 1, 1), generator)
    grey = lit.mean(dim=1, keepdim=True)
    return (grey + (lit - grey) * saturation).clamp(0, 255)


def _factor(spread: float, count: int, generator: Generator) -> Tensor:
    """(B,1,1,1) factors around 1, as often below it as above."""
    return torch.exp(_uniform(-spread, spread, count, generator)).view(-1, 1, 1, 1)


def _for_some(factors: Tensor, generator: Generator) -> Tensor:
    """The factors (B,1,1,1) for a share of the images, and 1 for the others."""
    changed = torch.rand(len(factors), generator=generator).view(-1, 1, 1, 1) < CHANGED_SHARE
    return torch.where(changed, factors, 1.0)


def damage(images: Tensor, generator: Generator) -> Tensor:
    """Blur some images and add noise to some; (B,3,H,W) float 0 to 255, same range."""
    count = len(images)
    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    blur = (torch.rand(count, generator=generator) < BLUR_SHARE).view(count, 1, 1, 1)
    noisy = (torch.rand(count, generator=generator) < NOISE_SHARE).float().view(count, 1, 1, 1)
    deviation = noisy * NOISE_DEVIATION * torch.rand(count, generator=generator).view(count, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator) * deviation
    return (torch.where(blur, blurred, images) + noise).clamp(0, 255)


def is_grey(images: Tensor) -> Tensor:
    """(B,) whether images (B,3,H,W) uint8 have no colour: those of microscopes, X-rays and heat cameras."""
    spread = images.amax(dim=1) - images.amin(dim=1)
    return spread.float().mean(dim=(1, 2)) <= GREY_SPREAD


def show_negatives(images: Tensor, grey: Tensor, generator: Generator) -> Tensor:
    """The negatives of some of the grey (B,) ones among images (B,3,H,W) float 0 to 255, same range.

    Where there is no colour, dark on bright or bright on dark is often the stain, the lamp or the sensor.
    Made before the light changes, so that their background is not always white.
    """
    if not grey.any():
        return images
    negative = grey & (torch.rand(len(images), generator=generator) < NEGATIVE_SHARE)
    # What was interpolated may be a hair above 255, and nothing below 0 has a gamma.
    return torch.where(negative.view(-1, 1, 1, 1), (255 - images).clamp(min=0), images)


def borrow_colours(images: Tensor, coloured: Tensor, generator: Generator) -> Tensor:
    """Images (B,3,H,W) float 0 to 255, some of the coloured (B,) ones with the mean and deviation of each
    channel moved towards those of another of them; same range.

    Another camera or day has other colours, and the images of one data set tell which there may be. Of
    logarithms, in which light is a sum. Reinhard et al. 2001, "Color transfer between images".
    """
    count = int(coloured.sum())
    if count < 2:
        return images
    lit = images[coloured].add(1).log()
    mean = lit.mean(dim=(2, 3), keepdim=True)
    deviation = lit.std(dim=(2, 3), keepdim=True).clamp(min=SMALLEST_DEVIATION)
    lender = torch.randperm(count, generator=generator)
    share = torch.rand(count, generator=generator).view(-1, 1, 1, 1)
    share = share * (torch.rand(count, generator=generator).view(-1, 1, 1, 1) < CHANGED_SHARE)
    stretch = (torch.lerp(deviation, deviation[lender], share) / deviation).clamp(max=MOST_STRETCH)
    moved = ((lit - mean) * stretch + torch.lerp(mean, mean[lender], share)).exp().sub(1).clamp(0, 255)
    borrowed = images.clone()
    borrowed[coloured] = moved
    return borrowed


def augment(
    images: Tensor,
    masks: Tensor,
    affine: Tensor,
    crop: tuple[int, int],
    stride: int,
    ignore_index: int,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """The view of each labelled image that affine (B,2,3) shows, in random light; some grey ones negative,
    some of the others in the colours of another.

    images (B,3,H,W) uint8, masks (B,H,W) uint8 -> images (B,3,h,w) float 0 to 255 and masks
    (B, h/stride, w/stride) int64, on the grid that the generator's masks are judged on.
    """
    grey = is_grey(images)
    seen = show_negatives(warp_images(images, affine, crop), grey, generator)
    seen = borrow_colours(seen, ~grey, generator)
    seen = damage(jitter_light(seen, generator), generator)
    mask_size = (crop[0] // stride, crop[1] // stride)
    return seen, warp_masks(masks, affine, mask_size, ignore_index)
