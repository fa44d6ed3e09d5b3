"""COCO's polygons and run lengths: checked in Python before any C code sees them, then drawn.

pycocotools reads four numbers as a box, writes outside its memory for coordinates of 1e18 and allocates
what a perimeter asks for without looking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

POLYGON_NUMBERS = 6  # three corners
FARTHEST = 10  # image sizes that a corner may lie outside
LONGEST = 2_000_000  # pixels of perimeter; drawing takes 80 bytes for each


class OddShapeError(ValueError):
    """A segmentation that draws nothing that can be relied on; the message says why."""


@dataclass(frozen=True)
class Polygons:
    """x, y, x, y ... in pixels, of three corners or more each; left_out: why others are not among them."""

    corners: list[list[float]]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Runs:
    """Lengths of false, true, false ... down the columns: as a list, or as COCO packs them into text."""

    counts: list[int] | str


def checked_shape(segmentation: Any, height: int, width: int) -> Polygons | Runs:
    """What a segmentation draws on an image of that size. OddShapeError."""
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise OddShapeError("it has no segmentation")
    flat = _are_numbers(segmentation)  # one polygon, written without its list
    return _checked_polygons([segmentation] if flat else segmentation, height, width)


def drawn(shape: Polygons | Runs, height: int, width: int) -> np.ndarray:
    """HxW booleans."""
    if isinstance(shape, Runs):
        counts = unpacked(shape.counts) if isinstance(shape.counts, str) else shape.counts
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(width, height).T
    from pycocotools import mask as coco_masks

    merged = coco_masks.merge(coco_masks.frPyObjects(shape.corners, height, width))
    return np.asarray(coco_masks.decode(merged).astype(bool))


def unpacked(text: str) -> list[int]:
    """COCO's packed run lengths: groups of five bits, lowest first, from the third on as differences.

    OddShapeError for text that does not end, or holds other characters.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise OddShapeError("its packed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    if shift:
        raise OddShapeError("its packed run lengths are cut off")
    return counts


def _checked_runs(segmentation: dict[str, Any], height: int, width: int) -> Runs:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
        raise OddShapeError("its run lengths lack size or counts")
    if size != [height, width]:
        raise OddShapeError(f"its run lengths are for {_size(size)}, the image is {width}x{height}")
    lengths = unpacked(counts) if isinstance(counts, str) else counts
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise OddShapeError("its run lengths are no whole numbers from 0")
    if sum(lengths) != height * width:
        raise OddShapeError(f"its run lengths add up to {sum(lengths)}, not to {height * width} pixels")
    return Runs(counts)


def _size(size: list[Any]) -> str:
    return f"{size[1]!r}x{size[0]!r}"[:60]


def _checked_polygons(polygons: list[Any], height: int, width: int) -> Polygons:
    kept, left_out = [], []
    for polygon in polygons:
        reason = _oddity(polygon, height, width)
        if reason is None:
            kept.append(polygon)
        else:
            left_out.append(reason)
    if not kept:
        raise OddShapeError(left_out[0])
    if sum(map(_perimeter, kept)) > LONGEST:
        raise OddShapeError(f"its polygons are over {LONGEST} pixels long together")
    return Polygons(kept, tuple(left_out))


def _oddity(polygon: Any, height: int, width: int) -> str | None:
    """Why a polygon cannot be drawn."""
    if not isinstance(polygon, list) or not _are_numbers(polygon):
        return "a polygon is no list of numbers"
    if len(polygon) % 2 or len(polygon) < POLYGON_NUMBERS:
        return f"a polygon has {len(polygon)} numbers; an area has three corners or more, of x and y"
    if not (_all_near(polygon[::2], width) and _all_near(polygon[1::2], height)):
        return f"a polygon lies over {FARTHEST} image sizes outside, or is no number"
    return None


def _perimeter(polygon: list[float]) -> float:
    """As drawing counts it: the longer of width and height of each edge."""
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _all_near(values: list[float], size: int) -> bool:
    """False of NaN too."""
    return all(-FARTHEST * size <= value <= (1 + FARTHEST) * size for value in values)


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}
