"""An adversarial game over maps of discriminator outputs, and what it may cost to be steep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.kinds import GAN_LOSSES, module_of


@dataclass(frozen=True)
class GanLoss:
    """One adversarial game over maps of discriminator outputs (B,1,h,w).

    boundary: the output above which a mask counts as called real; None where the output has no fixed scale.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    boundary: float | None
    gradient_penalty: float = 0.0


def gan_loss(name: str) -> GanLoss:
    """The game of this name in segpipe.kinds. Raises RunError for an unknown one."""
    loss: GanLoss = module_of(GAN_LOSSES, name, "GAN loss").LOSS
    return loss


def gradient_penalty(
    discriminator: Callable[[Tensor, Tensor], Tensor], image: Tensor, real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """Mean (||dD/dmask||_2 - 1)^2 between real and fake (Gulrajani et al. 2017); mix (B,1,1,1), 0 to 1."""
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    output = discriminator(image, between)
    # The map's mean per image is the critic's value, so the slope does not grow with the image's size.
    value = output.mean(dim=(1, 2, 3)).sum()
    (slope,) = torch.autograd.grad(value, between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
