"""Shapes, the published stacks, and what a discriminator is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from segpipe.kinds import ARCHITECTURES
from segpipe.models.discriminators.protocol import build_adversary
from segpipe.models.generators.protocol import build_generator
from segpipe.models.generators.unet_ibn import BoundedInstanceNorm, InstanceBatchNorm
from segpipe.models.masks import class_logits, hard_channels, mask_channels, probabilities


def layers_of(network: nn.Module) -> list[tuple[type, int, int, tuple[int, ...]] | type]:
    return [
        (type(m), m.in_channels, m.out_channels, m.kernel_size) if isinstance(m, nn.Conv2d) else type(m)
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.ReLU)
    ]


def test_the_plain_networks_are_the_published_stacks() -> None:
    def stack(inputs: int, outputs: int) -> list[object]:
        ends = [(3, 3)] * 3
        shapes = [(inputs, 64), (64, 64), (64, outputs)]
        convolutions = [(nn.Conv2d, *shape, kernel) for shape, kernel in zip(shapes, ends, strict=True)]
        return [convolutions[0], nn.ReLU, convolutions[1], nn.ReLU, convolutions[2]]

    assert layers_of(build_generator("plain", 1)) == stack(3, 1)
    assert layers_of(build_adversary("plain", 1)) == stack(4, 1)
    assert layers_of(build_generator("plain", 11)) == stack(3, 11)
    assert layers_of(build_adversary("plain", 11)) == stack(14, 1)


def test_two_classes_are_one_sigmoid_channel_in_the_original_recipe_only() -> None:
    plain, unet = ARCHITECTURES["plain"], ARCHITECTURES["unet"]
    assert (plain.mask_channels(2), plain.mask_channels(3), unet.mask_channels(2)) == (1, 3, 2)


@pytest.mark.parametrize("name", ["unet", "unet-ibn"])
@pytest.mark.parametrize("size", [(32, 32), (64, 160), (352, 480)])
def test_the_unets_give_logits_at_half_the_working_size(name: str, size: tuple[int, int]) -> None:
    generator = build_generator(name, 5).eval()
    discriminator = build_adversary("unet", 5).eval()
    with torch.inference_mode():
        logits = generator(torch.randn(1, 3, *size))
        verdict = discriminator(torch.randn(1, 3, *logits.shape[-2:]), logits.softmax(1))
    assert logits.shape == (1, 5, size[0] // 2, size[1] // 2)
    assert verdict.shape[:2] == (1, 1)


def test_half_of_the_first_features_do_not_know_an_image_s_light() -> None:
    norm = InstanceBatchNorm(6).eval()
    norm.instance.usual_variance.copy_(torch.tensor([0.5, 1.0, 4.0]))
    torch.nn.init.normal_(norm.instance.bias)
    features = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, lit = norm(features), norm(features + 7)
    own, usual = features[:, :3].numpy(), np.array([0.5, 1.0, 4.0])[:, None, None]
    mean, variance = own.mean(axis=(2, 3), keepdims=True), own.var(axis=(2, 3), keepdims=True)
    bias = norm.instance.bias.detach().numpy()[:, None, None]
    expected = (own - mean) / np.sqrt(variance + 0.1 * usual) + bias
    np.testing.assert_allclose(found[:, :3].numpy(), expected, atol=1e-4)
    torch.testing.assert_close(lit[:, :3], found[:, :3], atol=1e-4, rtol=0)
    # As batch normalisation begins it changes nothing, so the other half tells what the light was.
    torch.testing.assert_close(lit[:, 3:], features[:, 3:] + 7, atol=1e-3, rtol=0)


def test_an_empty_field_is_not_given_the_contrast_of_a_full_one() -> None:
    norm = BoundedInstanceNorm(2).train()
    draws = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for number in range(200):
            full = norm((10 if number % 2 else 14) * torch.randn(4, 2, 32, 32, generator=draws))
        empty = 0.1 * torch.randn(4, 2, 32, 32, generator=draws)
        found = norm.eval()(empty)
    assert float(full.std()) == pytest.approx(1, abs=0.01)  # as it trains, each is by its own alone
    # The mean of 10² and 14², the latest a little before the others.
    torch.testing.assert_close(norm.usual_variance, torch.full((2,), 148.0), atol=10, rtol=0)
    assert 0.022 < float(found.std()) < 0.03  # 0.1 over the root of 14.8


def test_a_faint_contrast_in_a_bright_image_outlives_half_precision() -> None:
    norm = BoundedInstanceNorm(1).eval()
    pattern = torch.tensor([0.0, 2.0]).repeat(8).view(1, 1, 4, 4)  # of bfloat16's steps at 256
    found = norm((256 + pattern).to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), pattern - 1, atol=0.01, rtol=0)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_faint_contrast_is_found_in_whatever_order_its_pixels_lie(order: torch.memory_format) -> None:
    faint = 5 + 0.01 * torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    norm = BoundedInstanceNorm(3).train()
    with torch.inference_mode():
        taught = norm(faint.contiguous(memory_format=order))
        found = norm.eval()(faint.contiguous(memory_format=order))
    exact = faint.double().numpy()
    deviations = exact - exact.mean(axis=(2, 3), keepdims=True)
    variance = exact.var(axis=(2, 3), keepdims=True)
    usual = 0.1 * variance.mean(axis=0)  # of one batch, which the running mean of nothing takes a tenth of
    np.testing.assert_allclose(norm.usual_variance.numpy(), usual[:, 0, 0], rtol=1e-2)
    np.testing.assert_allclose(taught.numpy(), deviations / np.sqrt(variance + 1e-5), atol=1e-3)
    np.testing.assert_allclose(found.numpy(), deviations / np.sqrt(variance + 1e-5 + 0.1 * usual), atol=1e-3)


def test_each_image_of_a_batch_is_taught_by_its_own_contrast_alone() -> None:
    contrasts = torch.tensor([1.0, 2.0, 9.0]).view(3, 1, 1, 1)
    batch = contrasts * torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    norm = BoundedInstanceNorm(2).train()
    found = norm(batch)
    torch.testing.assert_close(found.std(dim=(2, 3), correction=0), torch.ones(3, 2))
    usual = 0.1 * batch.var(dim=(2, 3), correction=0).mean(dim=0)
    torch.testing.assert_close(norm.usual_variance, usual)


def test_the_default_generator_sees_each_image_in_its_own_light() -> None:
    stem = build_generator("unet-ibn", 3).eval().stem
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    lit = images * torch.tensor([0.5, 1.0, 4.0]).view(3, 1, 1, 1)
    with torch.inference_mode():
        seen, as_lit = stem(images), stem(lit)
        alone = torch.cat([stem(lit[number : number + 1]) for number in range(3)])
    half = seen.shape[1] // 2
    torch.testing.assert_close(as_lit[:, :half], seen[:, :half], atol=1e-3, rtol=0)
    assert not torch.allclose(as_lit[:, half:], seen[:, half:], atol=0.1)
    torch.testing.assert_close(alone, as_lit)


def test_a_generator_from_before_the_bound_labels_as_it_did() -> None:
    norm = InstanceBatchNorm(6)
    norm.instance.usual_variance.fill_(7.0)  # of whatever it has learnt before
    former = torch.nn.GroupNorm(3, 3)
    torch.nn.init.normal_(former.weight)
    torch.nn.init.normal_(former.bias)
    state = {name: value for name, value in norm.state_dict().items() if "usual_variance" not in name}
    norm.load_state_dict(
        state | {"instance.weight": former.weight.detach(), "instance.bias": former.bias.detach()}
    )
    features = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(norm.eval()(features)[:, :3], former(features[:, :3]))


def test_the_usual_contrast_is_kept_with_the_weights() -> None:
    norm, other = BoundedInstanceNorm(2), BoundedInstanceNorm(2)
    norm.usual_variance.copy_(torch.tensor([3.0, 0.5]))
    other.load_state_dict(norm.state_dict())
    assert other.usual_variance.tolist() == [3.0, 0.5]


def test_an_image_of_one_colour_has_labels() -> None:
    generator = build_generator("unet-ibn", 3).eval()
    with torch.inference_mode():
        assert generator(torch.full((1, 3, 32, 32), 2.0)).isfinite().all()


def test_a_verdict_depends_on_image_and_mask_together() -> None:
    torch.manual_seed(0)
    discriminator = build_adversary("unet", 2).eval()
    images = torch.randn(2, 3, 32, 32)
    masks = mask_channels(torch.randint(0, 2, (2, 32, 32)), 2, 255)
    with torch.inference_mode():
        right, wrong_mask = discriminator(images, masks), discriminator(images, masks.flip(0))
        wrong_image = discriminator(images.flip(0), masks)
    assert not torch.allclose(right, wrong_mask)
    assert not torch.allclose(right, wrong_image)


def test_one_channel_becomes_two_classes_with_the_same_probability() -> None:
    logits = torch.tensor([-2.0, 0.0, 3.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(class_logits(logits).softmax(1)[:, 1:], logits.sigmoid())
    torch.testing.assert_close(probabilities(logits), logits.sigmoid())


def test_mask_channels_are_one_hot_and_blank_where_ignored() -> None:
    labels = torch.tensor([[[0, 2, 255]]])
    assert mask_channels(labels, 3, 255).tolist() == [[[[1, 0, 0]], [[0, 0, 0]], [[0, 1, 0]]]]
    assert mask_channels(torch.tensor([[[0, 1, 255]]]), 1, 255).tolist() == [[[[0, 1, 0]]]]


@pytest.mark.parametrize("channels", [1, 4])
def test_hard_channels_are_one_hot_forward_and_soft_backward(channels: int) -> None:
    logits = torch.randn(2, channels, 3, 3, requires_grad=True)
    weights = torch.randn(2, channels, 3, 3)
    hard = hard_channels(logits)
    assert set(hard.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0}
    (hard * weights).sum().backward()
    straight = logits.grad
    again = logits.detach().requires_grad_(True)
    (probabilities(again) * weights).sum().backward()
    torch.testing.assert_close(straight, again.grad)
