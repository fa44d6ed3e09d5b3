"""The discriminator of the original recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segpipe.models.discriminators.protocol import Adversary


class PlainDiscriminator(Adversary):
    """The original recipe: the generator's stack from 3 + channels inputs to one logit per pixel.

    image (B,3,H,W) and mask (B,channels,H,W) -> logits (B,1,H,W); the published sigmoid lies in the loss.
    """

    feature_channels = 64
    feature_stride = 1

    def __init__(self, mask_channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3 + mask_channels, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(64, 1, 3, padding=1)

    def features(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the head judges by: (B,feature_channels,H,W)."""
        return self.trunk(torch.cat([image, mask], dim=1))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.features(image, mask))


def build(mask_channels: int) -> PlainDiscriminator:
    """A new stack."""
    return PlainDiscriminator(mask_channels)
