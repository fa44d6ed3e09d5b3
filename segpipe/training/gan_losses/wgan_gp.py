"""Wasserstein distance with gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

from segpipe.training.gan_losses.game import GanLoss

GRADIENT_PENALTY = 10.0

LOSS = GanLoss(
    discriminator=lambda real, fake: fake.mean() - real.mean(),
    generator=lambda fake: -fake.mean(),
    boundary=None,
    gradient_penalty=GRADIENT_PENALTY,
)
