"""The losses of stage 1: what the pixels should be, and the four GAN games."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

GRADIENT_PENALTY = 10.0


@dataclass(frozen=True)
class GanLoss:
    """One adversarial game over maps of discriminator outputs (B,1,h,w).

    boundary: the output above which a mask counts as called real; None where the output has no fixed scale.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    boundary: float | None
    gradient_penalty: float = 0.0


def _binary(logits: Tensor, target: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


# Goodfellow et al. 2014, non-saturating; the mean of the two terms as in the original recipe.
BCE = GanLoss(
    discriminator=lambda real, fake: 0.5 * (_binary(real, 1.0) + _binary(fake, 0.0)),
    generator=lambda fake: _binary(fake, 1.0),
    boundary=0.0,
)
# Mao et al. 2017, with targets 1 and 0.
LSGAN = GanLoss(
    discriminator=lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
    generator=lambda fake: (fake - 1).square().mean(),
    boundary=0.5,
)
# Lim and Ye 2017.
HINGE = GanLoss(
    discriminator=lambda real, fake: (1 - real).relu().mean() + (1 + fake).relu().mean(),
    generator=lambda fake: -fake.mean(),
    boundary=0.0,
)
# Gulrajani et al. 2017.
WGAN_GP = GanLoss(
    discriminator=lambda real, fake: fake.mean() - real.mean(),
    generator=lambda fake: -fake.mean(),
    boundary=None,
    gradient_penalty=GRADIENT_PENALTY,
)


def gan_loss(name: str) -> GanLoss:
    """The game called bce, lsgan, hinge or wgan-gp."""
    return {"bce": BCE, "lsgan": LSGAN, "hinge": HINGE, "wgan-gp": WGAN_GP}[name]


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


def class_weights(pixel_counts: Tensor) -> Tensor:
    """(K,) pixel counts -> (K,) weights: inverse square root of the frequency, pixel mean 1, at most 5.

    Classes without a pixel weigh 0. The square root keeps rare classes audible without wrecking precision.
    """
    frequency = pixel_counts.double() / pixel_counts.sum().clamp(min=1)
    present = frequency > 0
    raw = torch.where(present, frequency.clamp(min=1e-12).rsqrt(), 0.0)
    scaled = raw / (raw * frequency).sum().clamp(min=1e-12)
    return scaled.clamp(max=5.0).float()


def pixel_loss(logits: Tensor, labels: Tensor, weights: Tensor, ignore_index: int) -> Tensor:
    """Class-balanced cross-entropy plus Dice; logits (B,K,H,W), labels (B,H,W) class indices."""
    total = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum"
    )
    known = labels != ignore_index
    # Divided here, not by torch: a batch without one labelled pixel is 0, not NaN.
    cross_entropy = total / (weights[labels.where(known, 0)] * known).sum().clamp(min=1.0)
    return cross_entropy + dice_loss(logits.softmax(dim=1), labels, ignore_index)


def dice_loss(probabilities: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """1 - mean soft Dice over the classes in the batch's truth (Milletari et al. 2016); 0 without any."""
    known = (labels != ignore_index).unsqueeze(1)
    n_classes = probabilities.shape[1]
    truth = functional.one_hot(labels.where(known[:, 0], 0), n_classes).permute(0, 3, 1, 2) * known
    shown = probabilities * known
    overlap = (shown * truth).sum(dim=(0, 2, 3))
    total = shown.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    dice = (2 * overlap + 1.0) / (total + 1.0)
    return (1 - dice)[present].sum() / present.sum().clamp(min=1)
