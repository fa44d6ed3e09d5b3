"""A second look by the generator: at the same image, half as large and mirrored, at a quarter of the pixels.

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
from segpipe.models.masks import class_logits, labels_at_size

# The image's sides over those of the smaller view. At 2.5 or 3 it costs less, and tells less.
SHRINK = 2
# Multiples of the generator's own, below which a view has hardly anything to see.
FEWEST_MULTIPLES = 2


@torch.inference_mode()
def seen_again(spec: ModelSpec, generator: Generator, images: Tensor, labels: Tensor, device: str) -> Tensor:
    """Labels (B,h,w) int64 of normalised images (B,3,H,W) seen smaller and mirrored, on the grid of the
    labels (B,h,w) that are judged; those themselves where the spec knows of no second look."""
    if spec.second_look is None:
        return labels
    multiple = math.lcm(generator.size_multiple, generator.output_stride)
    size = smaller_size((images.shape[2], images.shape[3]), multiple)
    small = functional.interpolate(images, size=size, mode="area")
    with autocast(device):
        logits = generator(small.flip(-1)).float()
    again = class_logits(logits).argmax(dim=1).flip(-1)
    return labels_at_size(again, (labels.shape[1], labels.shape[2]))


def smaller_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width at which an image of this size is seen again, by a generator that takes multiples: at
    half its sides, rounded up, where these are long enough."""
    height, width = (
        min(side, max(FEWEST_MULTIPLES, math.ceil(side / SHRINK / multiple)) * multiple) for side in size
    )
    return height, width
