"""The four GAN games and the pixel loss, with values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from segpipe.training.gan_losses.game import gan_loss, gradient_penalty
from segpipe.training.pixel_losses import class_weights, dice_loss, pixel_loss

REAL = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1)
FAKE = torch.tensor([0.0, 3.0]).view(2, 1, 1, 1)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        # -log sigmoid(x) = softplus(-x), -log(1 - sigmoid(x)) = softplus(x)
        (
            "bce",
            ((softplus(-2) + softplus(1)) / 2 + (softplus(0) + softplus(3)) / 2) / 2,
            (softplus(0) + softplus(-3)) / 2,
        ),
        ("lsgan", ((1 + 4) / 2 + (0 + 9) / 2) / 2, (1 + 4) / 2),
        ("hinge", (0 + 2) / 2 + (1 + 4) / 2, -1.5),
        ("wgan-gp", 1.5 - 0.5, -1.5),
    ],
)
def test_each_game_has_its_published_value(name: str, discriminator: float, generator: float) -> None:
    game = gan_loss(name)
    assert game.discriminator(REAL, FAKE).item() == pytest.approx(discriminator, abs=1e-6)
    assert game.generator(FAKE).item() == pytest.approx(generator, abs=1e-6)


def test_only_wgan_gp_penalises_the_gradient() -> None:
    assert {name: gan_loss(name).gradient_penalty for name in ("bce", "lsgan", "hinge", "wgan-gp")} == {
        "bce": 0.0,
        "lsgan": 0.0,
        "hinge": 0.0,
        "wgan-gp": 10.0,
    }


def test_gradient_penalty_of_a_linear_critic_is_its_slope_off_one() -> None:
    # D(x, y) = mean over 2x2 pixels of 6 y, so dD/dy = 6/4 at each of 4 pixels: norm 3, penalty (3 - 1)^2.
    def critic(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 6 * mask

    shape = (3, 1, 2, 2)
    penalty = gradient_penalty(
        critic, torch.zeros(3, 3, 2, 2), torch.ones(shape), torch.zeros(shape), torch.full((3, 1, 1, 1), 0.3)
    )
    assert penalty.item() == pytest.approx(4.0)


def test_class_weights_follow_the_inverse_square_root_and_average_to_one_over_the_pixels() -> None:
    weights = class_weights(torch.tensor([64, 36, 0]))
    # 1/sqrt(.64) = 1.25 and 1/sqrt(.36) = 1.667; their mean over the pixels is .8 + .6 = 1.4.
    assert weights.tolist() == pytest.approx([1.25 / 1.4, 1 / 0.6 / 1.4, 0.0])


@pytest.mark.parametrize(("n_pixels", "weight"), [(100, 9.1325), (10, 20.0), (0, 0.0)])
def test_a_rare_class_weighs_much_and_none_more_than_twenty(n_pixels: int, weight: float) -> None:
    # 1% of the pixels: 1/sqrt(.01) = 10, 1/sqrt(.99) = 1.00504; their mean over the pixels is 1.09499.
    weights = class_weights(torch.tensor([10_000 - n_pixels, n_pixels]))
    assert weights[1].item() == pytest.approx(weight, abs=1e-4)


def test_dice_counts_the_classes_in_the_truth_and_leaves_ignored_pixels_out() -> None:
    labels = torch.tensor([[[0, 0, 1, 255]]])
    probabilities = torch.tensor([[[[1.0, 0.5, 0.0, 0.0]], [[0.0, 0.5, 1.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]])
    # With 1 added to both sides: class 0 (2*1.5+1)/(1.5+2+1) = 4/4.5, class 1 (2*1+1)/(1.5+1+1) = 3/3.5.
    expected = 1 - (4 / 4.5 + 3 / 3.5) / 2
    assert dice_loss(probabilities, labels, 255).item() == pytest.approx(expected, abs=1e-6)


def test_pixel_loss_of_a_batch_without_one_labelled_pixel_is_zero_and_differentiable() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), 255), torch.ones(3), 255)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_pixel_loss_weighs_the_cross_entropy_by_class() -> None:
    logits = torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]]]])
    labels = torch.tensor([[[0, 1]]])
    weights = torch.tensor([3.0, 1.0])
    cross_entropy = (3 * softplus(1) + softplus(-1)) / 4
    dice = dice_loss(logits.softmax(1), labels, 255).item()
    assert pixel_loss(logits, labels, weights, 255).item() == pytest.approx(cross_entropy + dice, abs=1e-6)
