"""From class logits on the networks' grid to a mask at the image's own size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Logits raised to full size at once on a device: 16 million floats, 64 MB, whatever the image's size.
RAISED_AT_ONCE = 16_000_000
# Pixels of the mask in work at once on the CPU: their indices and logits stay in the cache.
_PIXELS_AT_ONCE = 1 << 17
_MIXED_AT_ONCE = 1 << 14


@torch.inference_mode()
def full_size_mask(logits: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(K,h,w) float32 logits -> HxW uint8 class indices at size (H, W): the argmax of bilinear logits."""
    if logits.device.type == "cpu":
        return _on_cpu(logits.numpy(), size)
    return _on_device(logits, size).cpu().numpy()


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
        mask[better] = (index[better] + first).to(torch.uint8)
        best = torch.maximum(best, value)
    return mask


@dataclass(frozen=True)
class _Axis:
    """For each position along the mask its neighbours on the grid, and the share of the upper one."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    share: NDArray[np.float32]


def _axis(grid: int, length: int) -> _Axis:
    """Half-pixel centres, as torch has them with align_corners=False."""
    steps = np.arange(length, dtype=np.float32) + np.float32(0.5)
    position = np.maximum(steps * np.float32(grid / length) - np.float32(0.5), 0)
    lower = np.minimum(position.astype(np.int64), grid - 1)
    return _Axis(lower, np.minimum(lower + 1, grid - 1), (position - lower).astype(np.float32))


def _on_cpu(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Interpolates only where it can matter: between grid points of one class no other class can win."""
    n_classes, height, width = logits.shape
    labels = logits.argmax(axis=0).astype(np.uint8)
    uniform = _uniform_cells(labels)
    by_point = np.ascontiguousarray(logits.reshape(n_classes, -1).T)
    rows, columns = _axis(height, size[0]), _axis(width, size[1])
    mask = np.empty(size, np.uint8)
    step = max(1, _PIXELS_AT_ONCE // size[1])
    for first in range(0, size[0], step):
        lower = rows.lower[first : first + step]
        mask[first : first + step] = labels[lower][:, columns.lower]
        mixed = np.flatnonzero(~uniform[lower][:, columns.lower]) + first * size[1]
        for start in range(0, len(mixed), _MIXED_AT_ONCE):
            pixels = mixed[start : start + _MIXED_AT_ONCE]
            mask.reshape(-1)[pixels] = _interpolated(by_point, width, rows, columns, pixels)
    return mask


def _uniform_cells(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(h,w): whether a grid point, its right, its lower and its lower right neighbour are of one class."""
    right = np.concatenate([labels[:, 1:], labels[:, -1:]], axis=1)
    below = np.concatenate([labels[1:], labels[-1:]], axis=0)
    across = np.concatenate([right[1:], right[-1:]], axis=0)
    return (labels == right) & (labels == below) & (labels == across)


def _interpolated(
    by_point: NDArray[np.float32], width: int, rows: _Axis, columns: _Axis, pixels: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The best class of each of these pixels, numbered along the mask's rows; by_point is (h*w,K)."""
    row, column = np.divmod(pixels, len(columns.lower))
    left, right, across = columns.lower[column], columns.upper[column], columns.share[column][:, None]
    above, below = rows.lower[row] * width, rows.upper[row] * width
    upper = _between(by_point[above + left], by_point[above + right], across)
    lower = _between(by_point[below + left], by_point[below + right], across)
    return _between(upper, lower, rows.share[row][:, None]).argmax(axis=1).astype(np.uint8)


def _between(
    one: NDArray[np.float32], other: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """one where share is 0, other where it is 1; works in place, on arrays of its own."""
    other -= one
    other *= share
    other += one
    return other
