"""The default generator: the residual U-Net, half of whose first layer sees each image in its own light."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segpipe.models.generators.unet import UNetGenerator

EPSILON = 1e-5
# Of the usual variance, added to an image's own: contrast is raised at most 1/sqrt(0.1) = 3.2-fold.
USUAL_SHARE = 0.1
MOMENTUM = 0.1


class BoundedInstanceNorm(nn.Module):
    """Instance normalisation that makes no structure of what an image without any is full of: noise.

    (B,C,h,w) -> the same shape, each channel of an image by its own mean and the root of its own variance
    (Ulyanov et al. 2016, "Instance normalization"): so it trains. By that alone an empty field has as much
    contrast as one full of objects, so that out of training a share of the variance that images in training
    have, a running mean, is added to it. usual_variance is 0 in networks from before it was kept. No gradient
    flows through an image's own variance out of training.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("usual_variance", torch.zeros(channels))
        self.usual_variance: Tensor
        self.register_load_state_dict_pre_hook(_with_usual_variance)

    def forward(self, features: Tensor) -> Tensor:
        # In float32, as group_norm is under autocast: in bfloat16 the mean would drown a faint contrast. With
        # channels last it would, too: a square of the mean is taken off a mean square there, and rounded
        # otherwise for other batches and numbers of threads.
        whole = features.float().contiguous()
        count, channels, height, width = whole.shape
        normalised, _, inverse = torch.native_group_norm(
            whole, None, None, count, channels, height * width, channels, EPSILON
        )
        scale: Tensor = self.weight
        if self.training:
            self._learn_usual(inverse)
        else:
            scale = scale * torch.rsqrt(1 + USUAL_SHARE * self.usual_variance * inverse.square())
        found = torch.addcmul(self.bias[:, None, None], normalised, scale[..., None, None])
        return found.to(features.dtype)

    @torch.no_grad()
    def _learn_usual(self, inverse: Tensor) -> None:
        """inverse (B,C): 1 over the root of each image's variance and EPSILON."""
        variances = inverse.pow(-2) - EPSILON
        self.usual_variance.lerp_(variances.mean(dim=0), MOMENTUM)


class InstanceBatchNorm(nn.Module):
    """Instance normalisation, bounded, of the first half of the channels, batch normalisation of the others.

    The light and colour cast of a whole image, which another camera, day or stain changes, are gone from the
    first half, and so is most of its contrast; the second half still tells a bright image from a dark one.
    After IBN-a of Pan et al. 2018, "Two at once: enhancing learning and generalization capacities via
    IBN-Net". (B,C,h,w) -> the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        own = channels // 2
        self.sizes = (own, channels - own)
        self.instance = BoundedInstanceNorm(own)
        self.batch = nn.BatchNorm2d(channels - own)

    def forward(self, features: Tensor) -> Tensor:
        own, shared = features.split(self.sizes, dim=1)
        return torch.cat([self.instance(own), self.batch(shared)], dim=1)


def build(mask_channels: int) -> UNetGenerator:
    """A new U-Net of the default widths."""
    return UNetGenerator(mask_channels, stem_normalisation=InstanceBatchNorm)


def _with_usual_variance(norm: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """What is from before it was kept labels as it did: nothing is added to an image's own."""
    state.setdefault(f"{prefix}usual_variance", torch.zeros_like(norm.get_buffer("usual_variance")))
