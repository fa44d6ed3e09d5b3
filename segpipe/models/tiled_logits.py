"""What the networks of a scaled image's tiles say, put together: for evaluation, which ranks every score."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from segpipe.models.bundle import Bundle
from segpipe.models.device import to_device
from segpipe.models.inference import generate, normalised, raw_adversarial_score
from segpipe.models.masks import class_logits
from segpipe.models.tiled import ScaledImage, tiles_of
from segpipe.tiles import Tile, pixels_of


def whole_logits(bundle: Bundle, image: ScaledImage, device: str) -> Tensor:
    """Class logits (K,h,w) of a whole image on the generator's own grid, in main memory."""
    stride, whole = bundle.generator.output_stride, None
    for tile, batch in _batches_of_one(bundle, image, device):
        logits = class_logits(generate(bundle, batch, device))[0].cpu()
        if whole is None:
            whole = torch.empty(len(logits), *(-(-side // stride) for side in image.size))
        down, across = tile.within(stride)
        whole[(slice(None), *tile.cells(stride))] = logits[:, down, across]
    assert whole is not None  # an image has one tile at least
    return whole


def raw_score_in_tiles(bundle: Bundle, image: ScaledImage, device: str) -> Tensor | None:
    """(1,) what raw_adversarial_score says of the tiles, by what each decides; None: there was no game."""
    total, area = torch.zeros(1), 0
    for tile, batch in _batches_of_one(bundle, image, device):
        raw = raw_adversarial_score(bundle, batch, generate(bundle, batch, device), device)
        if raw is None:
            return None
        decided = (tile.down.end - tile.down.first) * (tile.across.end - tile.across.first)
        total, area = total + raw.cpu() * decided, area + decided
    return total / area


def _batches_of_one(bundle: Bundle, image: ScaledImage, device: str) -> Iterator[tuple[Tile, Tensor]]:
    tiles = tiles_of(bundle, image.size)
    for tile in tiles.tiles:
        pixels = pixels_of(image.pixels, tile, tiles.size)
        yield tile, normalised(bundle, to_device(np.ascontiguousarray(pixels[None]), device))
