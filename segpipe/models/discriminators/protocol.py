"""What a discriminator of the adversarial game is."""

from __future__ import annotations

from torch import Tensor, nn

from segpipe.kinds import DISCRIMINATORS, module_of


class Adversary(nn.Module):
    """image (B,3,h,w) and mask (B,channels,h,w) -> a map of real/fake logits (B,1,a,b).

    An interface alone, as Generator is. features gives what the head judges by: (B,feature_channels,
    h/feature_stride,w/feature_stride), which the judge reads too.
    """

    feature_channels: int
    feature_stride: int
    head: nn.Module

    def features(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the head judges by."""
        raise NotImplementedError


def build_adversary(name: str, mask_channels: int) -> Adversary:
    """A new discriminator of a kind in segpipe.kinds. Raises RunError for an unknown name."""
    adversary: Adversary = module_of(DISCRIMINATORS, name, "discriminator").build(mask_channels)
    return adversary
