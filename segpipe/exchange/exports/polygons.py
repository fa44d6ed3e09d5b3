"""Polygons around the regions of a binary mask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator
from scipy.spatial import KDTree

# A larger region is cut along this grid, in pixels: finding outlines takes some 12 bytes per pixel.
LARGEST = 8000


def polygons(region: np.ndarray) -> Iterator[np.ndarray]:
    """Closed polygons (n,2) of x, y in 0..1 along the pixels' edges, one around each connected part of HxW
    booleans; inner edges of holes are joined to the outer one by a bridge of no width."""
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
    framed = np.pad(part, 1).astype(np.float64)
    found = contour_generator(z=framed, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    for points, offsets in zip(*found, strict=True):
        rings = [_along_edges(points[start:end]) for start, end in pairwise(offsets)]
        yield _corners(_joined(rings)) - 0.5


def _along_edges(ring: np.ndarray) -> np.ndarray:
    """The closed ring through the ends of the pixels' edges, of a contour through the middles of these edges.

    Where the contour goes from an edge that stands to one that lies, it cuts the corner between them.
    """
    here, there = ring[:-1], ring[1:]
    stands, stands_there = here[:, 0] % 1 != 0, there[:, 0] % 1 != 0
    x = np.where(stands, here[:, 0], there[:, 0])
    y = np.where(stands, there[:, 1], here[:, 1])
    corners = np.column_stack([x, y])
    ends = np.where((stands == stands_there)[:, None], (here + there) / 2, corners)
    return np.concatenate([ends, ends[:1]])


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring: from the outer one's nearest point into each hole and back."""
    outer, pieces, reached = rings[0], [], 0
    nearest = KDTree(outer)
    for at, detour in sorted((_detour(nearest, outer, hole) for hole in rings[1:]), key=lambda one: one[0]):
        pieces += [outer[reached : at + 1], detour]
        reached = at
    return np.concatenate([*pieces, outer[reached:]])


def _detour(nearest: KDTree, outer: np.ndarray, hole: np.ndarray) -> tuple[int, np.ndarray]:
    """Which point of the outer ring is nearest, and from there around the hole, along edges all the way."""
    distances, points = nearest.query(hole, p=1)
    inside = int(distances.argmin())
    at = int(points[inside])
    between = np.array([[hole[inside, 0], outer[at, 1]]])
    return at, np.concatenate([between, hole[inside:-1], hole[: inside + 1], between])


def _corners(ring: np.ndarray) -> np.ndarray:
    """The closed ring without points at which it goes straight on."""
    moving = np.concatenate([[True], (np.diff(ring, axis=0) != 0).any(axis=1)])
    ring = ring[moving]
    directions = np.sign(np.diff(ring, axis=0))
    turns = (directions != np.roll(directions, 1, axis=0)).any(axis=1)
    corners = ring[:-1][turns]
    return np.concatenate([corners, corners[:1]])
