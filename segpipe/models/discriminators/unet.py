"""A small U-Net with spectral norm, the default discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from segpipe.models.discriminators.protocol import Adversary

UNET_WIDTHS = (32, 64, 128)


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True))


class UNetDiscriminator(Adversary):
    """A small fully convolutional U-Net with spectral norm (Miyato et al. 2018; Schoenfeld et al. 2020).

    image (B,3,H,W) and mask (B,channels,H,W) -> logits (B,1,H/4,W/4), H and W multiples of 8.
    """

    feature_stride = 4

    def __init__(self, mask_channels: int, widths: tuple[int, int, int] = UNET_WIDTHS) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.feature_channels = middle
        self.down_fine = _down(3 + mask_channels, fine)
        self.down_middle = _down(fine, middle)
        self.down_coarse = _down(middle, coarse)
        self.lateral = spectral_norm(nn.Conv2d(coarse, middle, 1))
        self.merge = spectral_norm(nn.Conv2d(middle, middle, 3, padding=1))
        self.head = spectral_norm(nn.Conv2d(middle, 1, 1))

    def features(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the head judges by: (B,feature_channels,H/4,W/4)."""
        middle = self.down_middle(self.down_fine(torch.cat([image, mask], dim=1)))
        coarse = self.lateral(self.down_coarse(middle))
        raised = functional.interpolate(coarse, size=middle.shape[-2:], mode="bilinear", align_corners=False)
        return functional.leaky_relu(self.merge(middle + raised), 0.2)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.features(image, mask))


def build(mask_channels: int) -> UNetDiscriminator:
    """A new U-Net of the default widths."""
    return UNetDiscriminator(mask_channels)
