"""What a training sees of its labelled images: random crops at the networks' scale, some of them around rare
classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from segpipe.training.augmentation import augment, random_affine, window_affine, window_size
from segpipe.training.labelled_pixels import LabelledPixels
from segpipe.training.rare_classes import RareClasses

# Of all views; of those of an image that shows a rare class; how much more often it may be drawn for that.
AROUND_RARE = 1 / 3
MOST_AROUND_RARE = 2 / 3
MOST_REPEATED = 8.0


@dataclass(frozen=True)
class Emphasis:
    """How much is made of rare classes: weights (n,), how often each row is drawn, and the chance that a view
    of an image that shows a rare class is placed around it."""

    weights: Tensor
    chance: float


def emphasise(labelled: LabelledPixels, rows: Tensor) -> Emphasis:
    """So much of the rows (n,) that AROUND_RARE of all views are around rare classes, within the bounds."""
    weights = labelled.weights[rows]
    seen = torch.from_numpy(labelled.rare.seen)[rows]
    share = float(weights[seen].sum() / weights.sum())
    if share == 0:
        return Emphasis(weights, 0.0)
    needed = AROUND_RARE / MOST_AROUND_RARE
    repeated = min(max(needed / (1 - needed) * (1 - share) / share, 1.0), MOST_REPEATED)
    shown = repeated * share / (repeated * share + 1 - share)
    return Emphasis(
        torch.where(seen, weights * repeated, weights), min(AROUND_RARE / shown, MOST_AROUND_RARE)
    )


def draw_views(
    labelled: LabelledPixels,
    rows: Tensor,
    crop: tuple[int, int],
    stride: int,
    chance: float,
    draws: Generator,
) -> tuple[Tensor, Tensor]:
    """One random view of each row (B,); chance: that it is placed around a rare class its image shows.

    Images (B,3,h,w) float 0 to 255, h and w of the crop, and masks (B, h/stride, w/stride) int64, on the grid
    that the generator's masks are judged on.
    """
    sizes = labelled.sizes[rows]
    focus = draw_focus(labelled.rare, rows, chance, draws) if chance else None
    affine = random_affine(sizes, crop, draws, focus)
    if labelled.fitted:
        images, masks = labelled.batch(rows)
    else:
        window = window_size(crop)
        corners, affine = window_affine(affine, sizes, window)
        images, masks = labelled.cut(rows, corners, window)
    return augment(images, masks, affine, crop, stride, labelled.ignore_index, draws)


def draw_focus(rare: RareClasses, rows: Tensor, chance: float, draws: Generator) -> Tensor:
    """(B,2) row and column of a pixel of a rare class in each image (B,); NaN with probability 1 - chance,
    and where an image shows none."""
    focus = torch.full((len(rows), 2), torch.nan, dtype=torch.float64)
    drawn, seen = torch.rand(len(rows), 3, generator=draws).tolist(), rare.seen
    for number, (row, (whether, which, where)) in enumerate(zip(rows.tolist(), drawn, strict=True)):
        if whether < chance and seen[row]:
            focus[number] = torch.from_numpy(rare.place(row, which, where).astype(float))
    return focus
