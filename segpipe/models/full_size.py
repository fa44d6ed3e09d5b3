"""From class logits on the networks' grid to a mask at the image's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Logits raised to full size at once on a device: 16 million floats, 64 MB, whatever the image's size.
RAISED_AT_ONCE = 16_000_000
# Interpolated logits in work at once on the CPU: 4 MB.
_VALUES_AT_ONCE = 1 << 20


@torch.inference_mode()
def full_size_mask(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(K,h,w) float32 logits -> HxW uint8 class indices at size (H, W): the argmax of bilinear logits.

    labels (h,w) uint8: the argmax on the logits' own grid.
    """
    if tuple(labels.shape) == size:
        return labels.cpu().numpy()
    if logits.device.type == "cpu":
        return _on_cpu(logits.numpy(), labels.numpy(), size)
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
    """For each position along the mask its lower neighbour on the grid, and the share of the upper one; for
    each grid point the first of the positions above it, and how many there are."""

    lower: NDArray[np.int64]
    share: NDArray[np.float32]
    first: NDArray[np.int64]
    count: NDArray[np.int64]


@dataclass(frozen=True)
class _Pixels:
    """Of n cells of the grid the pixels of the mask, r rows of c: index (r,c,n) into the flat mask, and the
    shares of the cell's lower (r,1,n) and right (1,c,n) corners; the last pixel stands for any too many."""

    index: NDArray[np.int64]
    down: NDArray[np.float32]
    right: NDArray[np.float32]

    def of(self, chosen: NDArray[np.bool_]) -> _Pixels:
        """The pixels of the cells chosen (n,)."""
        return _Pixels(*(part.compress(chosen, axis=-1) for part in (self.index, self.down, self.right)))


def _axis(grid: int, length: int) -> _Axis:
    """Half-pixel centres, as torch has them with align_corners=False."""
    steps = np.arange(length, dtype=np.float32) + np.float32(0.5)
    position = np.maximum(steps * np.float32(grid / length) - np.float32(0.5), 0)
    lower = np.minimum(position.astype(np.int64), grid - 1)
    count = np.bincount(lower, minlength=grid)
    return _Axis(lower, (position - lower).astype(np.float32), np.cumsum(count) - count, count)


def _on_cpu(
    logits: NDArray[np.float32], labels: NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Interpolates only where it can matter: between grid points of one class no other class can win."""
    n_classes, height, width = logits.shape
    by_point = np.moveaxis(logits, 0, -1).reshape(-1, n_classes)
    rows, columns = _axis(height, size[0]), _axis(width, size[1])
    mask = labels.take(columns.lower, axis=1).take(rows.lower, axis=0)
    mixed = np.flatnonzero(~_uniform_cells(labels) & (rows.count > 0)[:, None] & (columns.count > 0))
    for down, right in _blocks(rows, columns, n_classes):
        step = max(1, _VALUES_AT_ONCE // (n_classes * len(down) * len(right)))
        for first in range(0, len(mixed), step):
            cells = mixed[first : first + step]
            corners = _corners(cells, height, width)
            pixels = _pixels(cells, rows, columns, down, right)
            _label(mask.reshape(-1), pixels, by_point[corners], labels.reshape(-1)[corners])
    return mask


def _blocks(rows: _Axis, columns: _Axis, n_classes: int) -> Iterator[tuple[range, range]]:
    """What of a cell's pixels is in work at once, downwards and to the right: all, unless they are many."""
    tall, wide = int(rows.count.max()), int(columns.count.max())
    height = min(tall, max(1, math.isqrt(_VALUES_AT_ONCE // n_classes)))
    width = min(wide, max(1, _VALUES_AT_ONCE // (n_classes * height)))
    for first_down, first_right in product(range(0, tall, height), range(0, wide, width)):
        yield range(first_down, first_down + height), range(first_right, first_right + width)


def _uniform_cells(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(h,w): whether a grid point, its right, its lower and its lower right neighbour are of one class."""
    right = np.concatenate([labels[:, 1:], labels[:, -1:]], axis=1)
    below = np.concatenate([labels[1:], labels[-1:]], axis=0)
    across = np.concatenate([right[1:], right[-1:]], axis=0)
    return (labels == right) & (labels == below) & (labels == across)


def _corners(cells: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """(4,n): the grid points upper left, upper right, lower left and lower right of these cells."""
    row, column = np.divmod(cells, width)
    below, right = np.minimum(row + 1, height - 1), np.minimum(column + 1, width - 1)
    upper, lower = row * width, below * width
    return np.stack([upper + column, upper + right, lower + column, lower + right])


def _pixels(cells: NDArray[np.int64], rows: _Axis, columns: _Axis, down: range, right: range) -> _Pixels:
    row, column = np.divmod(cells, len(columns.count))
    y, x = _positions(row, rows, down), _positions(column, columns, right)
    index = y[:, None] * len(columns.lower) + x[None]
    return _Pixels(index, rows.share[y][:, None], columns.share[x][None])


def _positions(points: NDArray[np.int64], axis: _Axis, steps: range) -> NDArray[np.int64]:
    """(m,n): the positions so many steps above n grid points; the last stands for those that are not."""
    return axis.first[points] + np.minimum(np.array(steps)[:, None], axis.count[points] - 1)


def _label(
    mask: NDArray[np.uint8], pixels: _Pixels, values: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    """Give pixels their best class, from the logits (4,n,K) and the labels (4,n) at their cells' corners."""
    one, other = labels.min(axis=0), labels.max(axis=0)
    by_class = np.ascontiguousarray(values.transpose(2, 0, 1))
    of_one, of_other = _values_of(one, by_class), _values_of(other, by_class)
    # What another class nowhere reaches at the corners it reaches nowhere between them.
    beaten = np.all(by_class <= of_one, axis=1) | np.all(by_class <= of_other, axis=1)
    two = np.all(beaten, axis=0)

    of_two, of_more = pixels.of(two), pixels.of(~two)
    lead = _interpolated((of_one - of_other).compress(two, axis=-1), of_two)
    mask[of_two.index] = other[two] + (lead >= 0) * (one - other)[two]  # np.where takes ten times as long
    raised = _interpolated(by_class.compress(~two, axis=-1).swapaxes(0, 1)[:, :, None, None], of_more)
    mask[of_more.index] = raised.argmax(axis=0)


def _values_of(labels: NDArray[np.uint8], by_class: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4,n): at the corners of each cell the logits (K,4,n) of the cell's class (n,)."""
    return np.ascontiguousarray(by_class[labels, :, np.arange(len(labels))].T)


def _interpolated(corners: NDArray[np.float32], pixels: _Pixels) -> NDArray[np.float32]:
    """Bilinear between the corners (4,...,n) of cells: (...,r,c,n)."""
    upper = corners[0] + (corners[1] - corners[0]) * pixels.right
    lower = corners[2] + (corners[3] - corners[2]) * pixels.right
    return upper + (lower - upper) * pixels.down
