"""A residual U-Net."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.models.generators.protocol import Generator

UNET_WIDTHS = (16, 48, 80, 128)
Normalisation = Callable[[int], nn.Module]


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    normalisation: Normalisation = nn.BatchNorm2d,
) -> nn.Sequential:
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        normalisation(outputs),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(features + self.second(self.first(features)))


class UNetGenerator(Generator):
    """A residual U-Net (Ronneberger et al. 2015); (B,3,H,W) -> logits (B,K,H/2,W/2), H and W multiples of 16.

    Most of the width sits at 1/4 to 1/16 of the image, where a convolution is cheap on CPU and GPU alike;
    the logits are upsampled to each image's own size. stem_normalisation: (channels) -> that of the first
    layer.
    """

    output_stride = judged_stride = 2
    size_multiple = 16

    def __init__(
        self,
        mask_channels: int,
        widths: tuple[int, int, int, int] = UNET_WIDTHS,
        stem_normalisation: Normalisation = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.stem = _convolution(3, half, kernel=5, stride=2, normalisation=stem_normalisation)
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(_convolution(half, quarter, stride=2), ResidualBlock(quarter)),
                nn.Sequential(
                    _convolution(quarter, eighth, stride=2), ResidualBlock(eighth), ResidualBlock(eighth)
                ),
                nn.Sequential(
                    _convolution(eighth, sixteenth, stride=2),
                    *[ResidualBlock(sixteenth, dilation) for dilation in (1, 2, 4)],
                    nn.Dropout2d(0.1),
                ),
            ]
        )
        pairs = [(sixteenth, eighth), (eighth, quarter), (quarter, half)]
        self.lateral = nn.ModuleList([nn.Conv2d(deep, shallow, 1) for deep, shallow in pairs])
        self.decoder = nn.ModuleList([_convolution(2 * shallow, shallow) for _, shallow in pairs])
        self.head = nn.Conv2d(half, mask_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        skips = []
        for stage in self.encoder:
            skips.append(features)
            features = stage(features)
        for lateral, decoder, skip in zip(self.lateral, self.decoder, reversed(skips), strict=True):
            raised = functional.interpolate(
                lateral(features), size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
            features = decoder(torch.cat([raised, skip], dim=1))
        return self.head(features)


def build(mask_channels: int) -> UNetGenerator:
    """A new U-Net of the default widths."""
    return UNetGenerator(mask_channels)
