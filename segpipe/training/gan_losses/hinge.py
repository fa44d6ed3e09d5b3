"""The hinge (Lim and Ye 2017)."""

from __future__ import annotations

from segpipe.training.gan_losses.game import GanLoss

LOSS = GanLoss(
    discriminator=lambda real, fake: (1 - real).relu().mean() + (1 + fake).relu().mean(),
    generator=lambda fake: -fake.mean(),
    boundary=0.0,
)
