"""The default generator: the residual U-Net, half of whose first layer sees each image in its own light."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segpipe.models.generators.unet import UNetGenerator


class InstanceBatchNorm(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the others.

    Light, contrast and colour cast of a whole image, which another camera, day or stain changes, are gone
    from the first half; the second still tells a bright image from a dark one. IBN-a of Pan et al. 2018, "Two
    at once: enhancing learning and generalization capacities via IBN-Net". (B,C,h,w) -> the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        own = channels // 2
        self.sizes = (own, channels - own)
        # Groups of one channel: it keeps channels last, which InstanceNorm2d does not.
        self.instance = nn.GroupNorm(own, own)
        self.batch = nn.BatchNorm2d(channels - own)

    def forward(self, features: Tensor) -> Tensor:
        own, shared = features.split(self.sizes, dim=1)
        return torch.cat([self.instance(own), self.batch(shared)], dim=1)


def build(mask_channels: int) -> UNetGenerator:
    """A new U-Net of the default widths."""
    return UNetGenerator(mask_channels, stem_normalisation=InstanceBatchNorm)
