"""The generator of the original recipe."""

from __future__ import annotations

from torch import nn

from segpipe.models.generators.protocol import Generator


class PlainGenerator(Generator, nn.Sequential):
    """The original recipe: three 3x3 convolutions, 64 wide; (B,3,H,W) -> logits (B,channels,H,W).

    The published sigmoid (one channel) or softmax (K channels) is applied by `models.masks.probabilities`.
    """

    output_stride = judged_stride = 1
    size_multiple = 1

    def __init__(self, mask_channels: int) -> None:
        super().__init__(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, mask_channels, 3, padding=1),
        )


def build(mask_channels: int) -> PlainGenerator:
    """A new stack."""
    return PlainGenerator(mask_channels)
