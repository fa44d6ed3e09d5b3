"""A mask at its image's own size on the CPU, from logits on a coarser grid; compiled, a loop over pixels.

An axis of what is raised is (points, first_pixel, first_point): how many grid points lie under one pixel, and
which pixel and which grid point of the whole image the first ones are; (h / H, 0, 0) for all of it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

HALF, ZERO = np.float32(0.5), np.float32(0)
Axis = tuple[float, int, int]


@njit(nogil=True)
def raise_mask(
    logits: NDArray[np.float32],
    labels: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    vertical: Axis,
    horizontal: Axis,
) -> None:
    """Fill mask (H,W) with the argmax of the bilinear logits (h,w,K); labels (h,w) are those on the grid.

    Interpolates only between grid points of different labels: elsewhere no other class can win.
    """
    bottoms = _ends(labels.shape[0], mask.shape[0], vertical)
    rights = _ends(labels.shape[1], mask.shape[1], horizontal)
    classes = np.empty(logits.shape[2], np.int64)
    top = 0
    for row, bottom in enumerate(bottoms):
        left = 0
        for column, right in enumerate(rights):
            corners = _corners(row, column, labels.shape)
            if _is_uniform(labels, corners):
                mask[top:bottom, left:right] = labels[row, column]
            else:
                found = _contenders(logits, corners, labels[row, column], classes)
                for y in range(top, bottom):
                    down = _position(y, vertical) - np.float32(row)
                    for x in range(left, right):
                        across = _position(x, horizontal) - np.float32(column)
                        mask[y, x] = _winner(logits, corners, classes, found, down, across)
            left = right
        top = bottom


@njit(nogil=True)
def _position(at: int, axis: Axis) -> np.float32:
    """On the grid; half-pixel centres, as torch has them with align_corners=False."""
    points, first_pixel, first_point = axis
    whole = max((np.float32(at + first_pixel) + HALF) * np.float32(points) - HALF, ZERO)
    return whole - np.float32(first_point)


@njit(nogil=True)
def _ends(grid: int, length: int, axis: Axis) -> NDArray[np.int64]:
    """For each grid point where the pixels between it and the next one end; the last has all that remain."""
    ends = np.full(grid, length, np.int64)
    end = 0
    for point in range(grid - 1):
        while end < length and _position(end, axis) < point + 1:
            end += 1
        ends[point] = end
    return ends


@njit(nogil=True)
def _corners(row: int, column: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The rows above and below, the columns left and right of what lies between four grid points."""
    return row, min(row + 1, shape[0] - 1), column, min(column + 1, shape[1] - 1)


@njit(nogil=True)
def _is_uniform(labels: NDArray[np.uint8], corners: tuple[int, int, int, int]) -> bool:
    upper, lower, left, right = corners
    label = labels[upper, left]
    return label == labels[upper, right] and label == labels[lower, left] and label == labels[lower, right]


@njit(nogil=True)
def _contenders(
    logits: NDArray[np.float32],
    corners: tuple[int, int, int, int],
    label: int,
    classes: NDArray[np.int64],
) -> int:
    """Put the classes that can win into classes, in order, and return how many there are.

    What the label nowhere trails at the corners it trails nowhere between them.
    """
    upper, lower, left, right = corners
    found = 0
    for k in range(logits.shape[2]):
        if (
            k == label
            or logits[upper, left, k] > logits[upper, left, label]
            or logits[upper, right, k] > logits[upper, right, label]
            or logits[lower, left, k] > logits[lower, left, label]
            or logits[lower, right, k] > logits[lower, right, label]
        ):
            classes[found] = k
            found += 1
    return found


@njit(nogil=True)
def _winner(
    logits: NDArray[np.float32],
    corners: tuple[int, int, int, int],
    classes: NDArray[np.int64],
    found: int,
    down: np.float32,
    across: np.float32,
) -> int:
    """The class of the highest bilinear logit, the first of equals; down and across from 0 to 1."""
    upper, lower, left, right = corners
    best, winner = np.float32(-np.inf), classes[0]
    for k in classes[:found]:
        above = logits[upper, left, k] + (logits[upper, right, k] - logits[upper, left, k]) * across
        below = logits[lower, left, k] + (logits[lower, right, k] - logits[lower, left, k]) * across
        value = above + (below - above) * down
        if value > best:
            best, winner = value, k
    return winner
