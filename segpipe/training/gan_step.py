"""Stage 1: generator and discriminator trained against each other, one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.models.device import autocast
from segpipe.models.discriminators.protocol import Adversary
from segpipe.models.generators.protocol import Generator
from segpipe.models.judge import on_judged_grid
from segpipe.models.masks import class_logits, hard_channels, mask_channels, probabilities
from segpipe.models.preprocess import shown_image
from segpipe.training.gan_losses.game import GanLoss, gradient_penalty
from segpipe.training.pixel_losses import pixel_loss


@dataclass(frozen=True)
class Game:
    """What the two networks play for, fixed for the whole training.

    pixel_weight and adversarial_weight: of the generator's two terms. hard_masks: the discriminator sees
    one-hot masks (straight-through gradient) instead of probabilities. class_weights: (K,).
    """

    loss: GanLoss
    pixel_weight: float
    adversarial_weight: float
    hard_masks: bool
    class_weights: Tensor
    ignore_index: int


@dataclass(frozen=True)
class Batch:
    """image (B,3,H,W) normalised; labels (B,h,w) int64, on the grid that the masks are judged on."""

    image: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StepResult:
    """The losses and the discriminator's health in one step, each a scalar tensor; shares are 0 to 1.

    They stay on the device: to fetch a number waits for all that the device has been asked to do.
    """

    pixel_loss: Tensor
    adversarial_loss: Tensor
    discriminator_loss: Tensor
    real_output: Tensor
    fake_output: Tensor
    real_accuracy: Tensor
    fake_accuracy: Tensor


@dataclass(frozen=True)
class Players:
    """The networks and their optimisers."""

    generator: Generator
    discriminator: Adversary
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer


def train_step(players: Players, game: Game, batch: Batch, device: str) -> StepResult:
    """First the discriminator on (x, y) against (x, G(x)), then the generator on its new verdict."""
    size, stride = (batch.image.shape[2], batch.image.shape[3]), players.generator.judged_stride
    with autocast(device):
        logits = on_judged_grid(players.generator(batch.image).float(), size, stride)
    known = (batch.labels != game.ignore_index).unsqueeze(1)
    image = shown_image(batch.image, (logits.shape[2], logits.shape[3]))
    real = mask_channels(batch.labels, logits.shape[1], game.ignore_index)
    # Ignored pixels are blank on both sides, or they would give the real mask away.
    fake = (hard_channels(logits) if game.hard_masks else probabilities(logits)) * known
    discriminator_loss, real_map, fake_map = _discriminator_step(
        players, game, image, real, fake.detach(), device
    )
    pixel, adversarial = _generator_step(players, game, batch, logits, image, fake, device)
    boundary: float | Tensor | None = game.loss.boundary
    if boundary is None:
        boundary = (real_map.mean() + fake_map.mean()) / 2
    return StepResult(
        pixel_loss=pixel,
        adversarial_loss=adversarial,
        discriminator_loss=discriminator_loss,
        real_output=real_map.mean(),
        fake_output=fake_map.mean(),
        real_accuracy=(real_map > boundary).float().mean(),
        fake_accuracy=(fake_map <= boundary).float().mean(),
    )


def _discriminator_step(
    players: Players, game: Game, image: Tensor, real: Tensor, fake: Tensor, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    players.discriminator.requires_grad_(True)
    with autocast(device):
        real_map = players.discriminator(image, real).float()
        fake_map = players.discriminator(image, fake).float()
    loss = game.loss.discriminator(real_map, fake_map)
    if game.loss.gradient_penalty:
        mix = torch.rand(len(image), 1, 1, 1, device=image.device)
        penalty = gradient_penalty(players.discriminator, image, real, fake, mix)
        loss = loss + game.loss.gradient_penalty * penalty
    players.discriminator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    players.discriminator_optimizer.step()
    return loss.detach(), real_map.detach(), fake_map.detach()


def _generator_step(
    players: Players, game: Game, batch: Batch, logits: Tensor, image: Tensor, fake: Tensor, device: str
) -> tuple[Tensor, Tensor]:
    loss = pixel = adversarial = logits.new_zeros(())
    if game.pixel_weight:
        term = pixel_loss(class_logits(logits), batch.labels, game.class_weights, game.ignore_index)
        loss, pixel = loss + game.pixel_weight * term, term.detach()
    if game.adversarial_weight:
        players.discriminator.requires_grad_(False)
        with autocast(device):
            term = game.loss.generator(players.discriminator(image, fake).float())
        loss, adversarial = loss + game.adversarial_weight * term, term.detach()
    players.generator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    players.generator_optimizer.step()
    return pixel, adversarial
