"""Least squares, with targets 1 and 0 (Mao et al. 2017)."""

from __future__ import annotations

from segpipe.training.gan_losses.game import GanLoss

LOSS = GanLoss(
    discriminator=lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
    generator=lambda fake: (fake - 1).square().mean(),
    boundary=0.5,
)
