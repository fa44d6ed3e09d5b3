"""What the networks of a scaled image's tiles say, put together: for evaluation, which ranks every score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.models.bundle import Bundle
from segpipe.models.device import stack_to_device
from segpipe.models.inference import generate, normalised, raw_adversarial_score
from segpipe.models.masks import class_logits
from segpipe.models.tiled import ScaledImage, tiles_of
from segpipe.tiles import Tile, pixels_of


@dataclass(frozen=True)
class WholeImage:
    """Class logits (K,h,w) of an image on the generator's own grid, in main memory; raw_score (1,): what
    raw_adversarial_score says of its tiles, by what each decides, None where there was no game."""

    logits: Tensor
    raw_score: Tensor | None


def whole_image(bundle: Bundle, image: ScaledImage, device: str) -> WholeImage:
    """One pass of the generator over the tiles of an image."""
    stride, whole = bundle.generator.output_stride, torch.empty(0)
    raw, area = torch.zeros(1), 0
    for tile, batch in _batches_of_one(bundle, image, device):
        generated = generate(bundle, batch, device)
        logits = class_logits(generated)[0].cpu()
        if not len(whole):
            whole = torch.empty(len(logits), *(-(-side // stride) for side in image.size))
        down, across = tile.within(stride)
        whole[(slice(None), *tile.cells(stride))] = logits[:, down, across]
        of_tile = raw_adversarial_score(bundle, batch, generated, device)
        decided = (tile.down.end - tile.down.first) * (tile.across.end - tile.across.first)
        raw, area = raw + (0 if of_tile is None else of_tile.cpu()) * decided, area + decided
    return WholeImage(whole, None if bundle.discriminator.adversary is None else raw / area)


def _batches_of_one(bundle: Bundle, image: ScaledImage, device: str) -> Iterator[tuple[Tile, Tensor]]:
    tiles = tiles_of(bundle, image.size)
    for tile in tiles.tiles:
        pixels = pixels_of(image.pixels, tile, tiles.size)
        yield tile, normalised(bundle, stack_to_device([pixels], device))
