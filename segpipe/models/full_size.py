"""From class logits on the networks' grid to a mask at the image's own size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segpipe.models.raised_mask import raise_mask

# Logits raised to full size at once on a device: 16 million floats, 64 MB, whatever the image's size.
RAISED_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class Part:
    """Rows and columns of an image, each as (points, first_pixel, first_point, pixels): grid points under one
    pixel; the first pixel, and the grid point that the logits begin with; and how many pixels."""

    vertical: tuple[float, int, int, int]
    horizontal: tuple[float, int, int, int]


@torch.inference_mode()
def part_of_mask(logits: Tensor, labels: Tensor, part: Part) -> Tensor:
    """As full_size_mask, of a part of an image, from logits (K,h,w) of that part and of what is around it; on
    their device."""
    if logits.device.type != "cpu":
        return _part_on_device(logits, part)
    return torch.from_numpy(_on_cpu(logits, labels, part))


@torch.inference_mode()
def full_size_mask(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(K,h,w) float32 logits -> HxW uint8 class indices at size (H, W): the argmax of bilinear logits.

    labels (h,w) uint8: the argmax on the logits' own grid.
    """
    if tuple(labels.shape) == size:
        return labels.cpu().numpy()
    if logits.device.type == "cpu":
        whole = Part(
            *((grid / length, 0, 0, length) for grid, length in zip(labels.shape, size, strict=True))
        )
        return _on_cpu(logits, labels, whole)
    return raised(logits[None], size)[0].cpu().numpy()


@torch.inference_mode()
def raised_each(logits: Tensor, labels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The masks (H,W) uint8 of a batch of logits (B,K,h,w) at the images' own sizes, on their device; those
    of one size together. labels (B,h,w) uint8: the argmax on the logits' own grid."""
    masks: dict[int, Tensor] = {}
    for size in dict.fromkeys(sizes):
        rows = [row for row, own in enumerate(sizes) if own == size]
        masks |= zip(rows, _raised_rows(logits, labels, rows, size), strict=True)
    return [masks[row] for row in range(len(sizes))]


def _raised_rows(logits: Tensor, labels: Tensor, rows: list[int], size: tuple[int, int]) -> Iterable[Tensor]:
    # Taken one by one: a list as index would be copied to the device.
    if tuple(labels.shape[1:]) == size:
        return [labels[row] for row in rows]
    return raised(logits if len(rows) == len(logits) else torch.stack([logits[row] for row in rows]), size)


def _on_cpu(logits: Tensor, labels: Tensor, part: Part) -> NDArray[np.uint8]:
    mask = np.empty((part.vertical[3], part.horizontal[3]), np.uint8)
    raise_mask(
        logits.permute(1, 2, 0).contiguous().numpy(),
        labels.contiguous().numpy(),
        mask,
        part.vertical[:3],
        part.horizontal[:3],
    )
    return mask


def _part_on_device(logits: Tensor, part: Part) -> Tensor:
    """In bounded memory: some rows at a time."""
    above, below, down = _between(part.vertical, logits.shape[1], logits.device)
    left, right, across = _between(part.horizontal, logits.shape[2], logits.device)
    step = max(1, RAISED_AT_ONCE // (len(logits) * len(left)))
    rows = []
    for first in range(0, len(above), step):
        taken = slice(first, first + step)
        upper, lower = logits[:, above[taken]], logits[:, below[taken]]
        tall = upper + (lower - upper) * down[taken, None]
        raised = tall[..., left] + (tall[..., right] - tall[..., left]) * across
        rows.append(raised.argmax(dim=0).to(torch.uint8))
    return torch.cat(rows)


def _between(axis: tuple[float, int, int, int], grid: int, device: torch.device) -> tuple[Tensor, ...]:
    """For each pixel: the grid points before and after it, and how far it is from the one before."""
    points, first_pixel, first_point, pixels = axis
    at = torch.arange(first_pixel, first_pixel + pixels, device=device, dtype=torch.float32)
    position = ((at + 0.5) * points - 0.5).clamp(min=0) - first_point
    before = position.floor().long().clamp(0, grid - 1)
    return before, (before + 1).clamp(max=grid - 1), position - before


def raised(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,K,h,w) logits -> (B,H,W) uint8 at size (H, W), on their device, in bounded memory."""
    at_once = max(1, RAISED_AT_ONCE // (logits.shape[1] * size[0] * size[1]))
    return torch.cat([_some_raised(part, size) for part in logits.split(at_once)])


def _some_raised(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Of one image, if it is large, some classes at a time."""
    step = max(1, RAISED_AT_ONCE // (len(logits) * size[0] * size[1]))
    best = torch.full((len(logits), *size), -torch.inf, device=logits.device)
    mask = torch.zeros((len(logits), *size), dtype=torch.uint8, device=logits.device)
    for first in range(0, logits.shape[1], step):
        some = functional.interpolate(
            logits[:, first : first + step].contiguous(), size=size, mode="bilinear", align_corners=False
        )
        value, index = some.max(dim=1)
        better = value > best
        mask = torch.where(better, (index + first).to(torch.uint8), mask)
        best = torch.maximum(best, value)
    return mask
