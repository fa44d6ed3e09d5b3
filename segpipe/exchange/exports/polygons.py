"""Polygons around the regions of a binary mask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator

FINER = 4  # corners are cut by half of such a step
# A larger region is cut along this grid, in pixels: what is finer takes 128 bytes per pixel.
LARGEST = 3000


def polygons(region: np.ndarray) -> Iterator[np.ndarray]:
    """Closed polygons (n,2) of x, y in 0..1 around each connected part of HxW booleans, inner edges of holes
    joined to the outer one by a bridge of no width."""
    height, width = region.shape
    for top, left, part in _parts(region):
        for polygon in _outlines(part):
            yield (polygon + np.array([left, top])) / (width, height)


def _parts(region: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Top, left and pixels of what holds something true."""
    for top in range(0, region.shape[0], LARGEST):
        for left in range(0, region.shape[1], LARGEST):
            part = region[top : top + LARGEST, left : left + LARGEST]
            if part.any():
                yield top, left, part


def _outlines(part: np.ndarray) -> Iterator[np.ndarray]:
    finer = np.pad(part.repeat(FINER, axis=0).repeat(FINER, axis=1), 1).astype(np.float64)
    found = contour_generator(z=finer, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    for points, offsets in zip(*found, strict=True):
        rings = [points[start:end] for start, end in pairwise(offsets)]
        yield (_joined(rings) - 0.5) / FINER


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring: from the outer one's nearest corner into each hole and back."""
    outer = rings[0]
    for hole in rings[1:]:
        distances = ((outer[:, None] - hole[None]) ** 2).sum(axis=2)
        at, inside = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.concatenate([hole[inside:-1], hole[: inside + 1]])
        outer = np.concatenate([outer[: at + 1], turned, outer[at:]])
    return outer
