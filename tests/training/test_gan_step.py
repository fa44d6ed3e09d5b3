"""The order and the arithmetic of one training step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, one_hot

from segpipe.models.discriminators.protocol import build_adversary
from segpipe.models.generators.protocol import build_generator
from segpipe.training.gan_losses.game import gan_loss
from segpipe.training.gan_step import Batch, Game, Players, train_step


def published_stack(inputs: int, outputs: int) -> nn.Sequential:
    """The original recipe's network, written down again from its description."""
    return nn.Sequential(
        nn.Conv2d(inputs, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, outputs, kernel_size=3, padding=1),
    )


def published_step(
    generator: nn.Module, discriminator: nn.Module, image: torch.Tensor, mask: torch.Tensor
) -> None:
    """One batch of the original recipe with two classes, in plain PyTorch."""
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    generator_adam = torch.optim.Adam(generator.parameters(), **adam)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), **adam)
    drawn = torch.sigmoid(generator(image))
    real = torch.sigmoid(discriminator(torch.cat([image, mask], 1)))
    fake = torch.sigmoid(discriminator(torch.cat([image, drawn.detach()], 1)))
    loss = (
        binary_cross_entropy(real, torch.ones_like(real)) + binary_cross_entropy(fake, torch.zeros_like(fake))
    ) / 2
    discriminator_adam.zero_grad()
    loss.backward()
    discriminator_adam.step()
    verdict = torch.sigmoid(discriminator(torch.cat([image, drawn], 1)))
    generator_adam.zero_grad()
    binary_cross_entropy(verdict, torch.ones_like(verdict)).backward()
    generator_adam.step()


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Into a network of other names but the same layers in the same order."""
    names = theirs.state_dict()
    theirs.load_state_dict(dict(zip(names, copy.deepcopy(list(ours.state_dict().values())), strict=True)))


def make_players(architecture: str, channels: int) -> Players:
    torch.manual_seed(3)
    generator = build_generator(architecture, channels)
    discriminator = build_adversary(architecture, channels)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    return Players(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), **adam),
        torch.optim.Adam(discriminator.parameters(), **adam),
    )


def make_game(loss: str = "bce", pixel: float = 0.0, adversarial: float = 1.0, hard: bool = False) -> Game:
    return Game(gan_loss(loss), pixel, adversarial, hard, torch.ones(3), 255)


@pytest.mark.usefixtures("float32")
def test_the_published_step_moves_every_weight_as_plain_pytorch_does() -> None:
    players = make_players("plain", 1)
    generator, discriminator = published_stack(3, 1), published_stack(4, 1)
    copy_weights(players.generator, generator)
    copy_weights(players.discriminator, discriminator)
    image, labels = torch.randn(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
    train_step(players, make_game(), Batch(image, labels), "cpu")
    published_step(generator, discriminator, image, labels.unsqueeze(1).float())
    for ours, theirs in zip(players.generator.parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(players.discriminator.parameters(), discriminator.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", ["bce", "lsgan", "hinge", "wgan-gp"])
@pytest.mark.parametrize("hard", [True, False])
def test_every_game_moves_both_networks(loss: str, hard: bool) -> None:
    players = make_players("unet", 3)
    before = copy.deepcopy((players.generator.state_dict(), players.discriminator.state_dict()))
    batch = Batch(torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 16, 16)))
    result = train_step(players, make_game(loss, 0.0, 1.0, hard), batch, "cpu")
    assert not torch.equal(players.generator.head.weight, before[0]["head.weight"])
    key = "head.parametrizations.weight.original"
    assert not torch.equal(players.discriminator.state_dict()[key], before[1][key])
    assert torch.isfinite(torch.tensor([result.adversarial_loss, result.discriminator_loss])).all()


def test_without_an_adversarial_weight_the_generator_does_not_hear_the_discriminator() -> None:
    batch = Batch(torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 16, 16)))
    heads = []
    for loss in ("bce", "hinge"):
        players = make_players("unet", 3)
        train_step(players, make_game(loss, pixel=1.0, adversarial=0.0), batch, "cpu")
        heads.append(players.generator.head.weight)
    assert torch.equal(heads[0], heads[1])


def test_ignored_pixels_are_blank_in_both_masks_the_discriminator_sees() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1)
            self.seen: list[torch.Tensor] = []

        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            self.seen.append(mask.detach().clone())
            return self.layer(mask)

    torch.manual_seed(0)
    recorder, players = Recorder(), make_players("unet", 3)
    adam = torch.optim.Adam(recorder.parameters())
    labels = torch.randint(0, 3, (1, 16, 16))
    labels[:, :, :5] = 255
    batch = Batch(torch.randn(1, 3, 32, 32), labels)
    watched = Players(players.generator, recorder, players.generator_optimizer, adam)  # type: ignore[arg-type]
    train_step(watched, make_game(hard=True), batch, "cpu")
    real, fake = recorder.seen[:2]
    assert real[..., :5].abs().sum() == 0
    assert fake[..., :5].abs().sum() == 0
    assert torch.equal(real[..., 5:], one_hot(labels[..., 5:], 3).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(fake[..., 5:].sum(1), torch.ones(1, 16, 11))
    torch.testing.assert_close(fake[..., 5:].amax(1), torch.ones(1, 16, 11))
