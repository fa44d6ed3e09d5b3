"""What is measured on labelled images: whole where they are fitted, else windows that are always the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.models.bundle import SIDE_MULTIPLE, ModelSpec, has_one_size
from segpipe.training.labelled_pixels import LabelledPixels

# Pixels that are measured at least where images are not fitted: those of a hundred fitted ones.
FEWEST_PIXELS = 100 * 256 * 352
# Many smaller windows see more of the images than a few large ones; whole tiles are for labelling.
LARGEST_SIDE = 512


@dataclass(frozen=True)
class Windows:
    """Parts of images: rows (M,), corners (M,2), top left pixels, and size, the height and width of all."""

    rows: Tensor
    corners: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, most: int | None) -> Windows:
        """So many of them at most; None: all."""
        return Windows(self.rows[:most], self.corners[:most], self.size)

    def batches(self, labelled: LabelledPixels, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B,3,h,w) uint8 and masks (B,h,w) uint8."""
        for rows, corners in zip(self.rows.split(batch_size), self.corners.split(batch_size), strict=True):
            yield labelled.cut(rows, corners, self.size)


def fixed_windows(labelled: LabelledPixels, spec: ModelSpec, seed: int) -> Windows:
    """All images whole where they are fitted; else windows that cost no more than that, or FEWEST_PIXELS,
    drawn by the seed from all of which the images are made, whatever they show."""
    if spec.tile is None:
        rows = torch.arange(len(labelled))
        return Windows(rows, torch.zeros(len(rows), 2, dtype=torch.int64), spec.working_size)
    size = spec.tile if has_one_size(spec) else _window(labelled.sizes, spec.tile)
    most = max(len(labelled) * math.prod(spec.working_size), FEWEST_PIXELS) // math.prod(size)
    return drawn_windows(labelled.sizes, size, max(1, most), seed)


def _window(sizes: Tensor, tile: tuple[int, int]) -> tuple[int, int]:
    """No larger than a tile, LARGEST_SIDE, or what the images need."""
    height, width = (
        min(side, LARGEST_SIDE, -(-whole // SIDE_MULTIPLE) * SIDE_MULTIPLE)
        for side, whole in zip(tile, sizes.amax(dim=0).tolist(), strict=True)
    )
    return height, width


def drawn_windows(sizes: Tensor, size: tuple[int, int], most: int, seed: int) -> Windows:
    """At most so many windows of images of these sizes (N,2), in the order of the images."""
    places = [
        (row, top, left)
        for row, (height, width) in enumerate(sizes.tolist())
        for top in _starts(height, size[0])
        for left in _starts(width, size[1])
    ]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    chosen = torch.tensor(places)[order[:most].sort().values]
    return Windows(chosen[:, 0], chosen[:, 1:], size)


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover a length, evenly spread; a single one begins with it."""
    steps = max(1, math.ceil(length / window)) - 1
    return [0] + [(length - window) * step // steps for step in range(1, steps + 1)]
