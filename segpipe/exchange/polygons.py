"""Polygons around the regions of a binary mask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator

FINER = 4  # corners are cut by half of such a step


def polygons(region: np.ndarray) -> Iterator[np.ndarray]:
    """Closed polygons (n,2) of x, y in 0..1 around each connected part of HxW booleans, inner edges of holes
    joined to the outer one by a bridge of no width."""
    height, width = region.shape
    finer = np.pad(region.repeat(FINER, axis=0).repeat(FINER, axis=1), 1).astype(np.float64)
    found = contour_generator(z=finer, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    for points, offsets in zip(*found, strict=True):
        rings = [points[start:end] for start, end in pairwise(offsets)]
        yield (_joined(rings) - 0.5) / FINER / (width, height)


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring: from the outer one's nearest corner into each hole and back."""
    outer = rings[0]
    for hole in rings[1:]:
        distances = ((outer[:, None] - hole[None]) ** 2).sum(axis=2)
        at, inside = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.concatenate([hole[inside:-1], hole[: inside + 1]])
        outer = np.concatenate([outer[: at + 1], turned, outer[at:]])
    return outer
