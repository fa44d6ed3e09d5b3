"""A second look by the generator: at the same image, half as large and mirrored, at a quarter of the cost.

What it labels alike both times does not hang on the size of things and where they lie. On videos that nobody
trained on that tells bad masks where neither the generator's own belief nor the judge does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.models.bundle import ModelSpec
from segpipe.models.device import autocast
from segpipe.models.generators.protocol import Generator
from segpipe.models.judge import ShownMask
from segpipe.models.masks import class_logits

# The image's sides over those of the smaller view. At 2.5 and 3 it costs less and tells less.
SHRINK = 2
# Multiples of the generator's own, below which a view has hardly anything to see.
FEWEST_MULTIPLES = 2


@torch.inference_mode()
def seen_again(
    spec: ModelSpec, generator: Generator, images: Tensor, shown: ShownMask, device: str
) -> Tensor:
    """Labels (B,h,w) int64 of normalised images (B,3,H,W) seen smaller and mirrored, on the grid of the masks
    that are shown of them; the masks' own where the spec knows of no second look."""
    if spec.second_look is None:
        return shown.one_hot.argmax(dim=1)
    multiple = math.lcm(generator.size_multiple, generator.output_stride)
    size = smaller_size((images.shape[2], images.shape[3]), multiple)
    small = functional.interpolate(images, size=size, mode="area")
    with autocast(device):
        logits = generator(small.flip(-1)).float()
    labels = class_logits(logits).argmax(dim=1).flip(-1)
    return _nearest(labels, (shown.one_hot.shape[2], shown.one_hot.shape[3]))


def smaller_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width at which an image of this size is seen again, by a generator that takes multiples: at
    half its sides, rounded up, where these are long enough."""
    height, width = (
        min(side, max(FEWEST_MULTIPLES, math.ceil(side / SHRINK / multiple)) * multiple) for side in size
    )
    return height, width


def _nearest(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = (
        torch.arange(cells, device=labels.device) * seen // cells
        for cells, seen in zip(grid, labels.shape[1:], strict=True)
    )
    return labels[:, rows][:, :, columns]
