"""Binary cross-entropy (Goodfellow et al. 2014), non-saturating, as in the original recipe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.training.gan_losses.game import GanLoss


def _binary(logits: Tensor, target: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


# The mean of the two terms as in the original recipe.
LOSS = GanLoss(
    discriminator=lambda real, fake: 0.5 * (_binary(real, 1.0) + _binary(fake, 0.0)),
    generator=lambda fake: _binary(fake, 1.0),
    boundary=0.0,
)
