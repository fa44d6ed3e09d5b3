"""Random views: image and mask move together, and nothing is made up outside the image."""

from __future__ import annotations

import pytest
import torch

from segpipe.training.augmentation import (
    augment,
    crop_size,
    jitter_light,
    random_affine,
    warp_images,
    warp_masks,
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadrants() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(64, 96, dtype=torch.uint8)
    mask[:32, 48:], mask[32:, :48], mask[32:, 48:] = 1, 2, 3
    # The class in binary, a bit a channel: a blend of two classes is never mistaken for a third.
    image = torch.stack([(mask & 1) * 200, (mask >> 1) * 200, torch.full_like(mask, 200)])
    return image.expand(8, -1, -1, -1), mask.expand(8, -1, -1)


def test_every_pixel_of_a_warped_mask_is_the_class_of_the_same_pixel_of_the_image() -> None:
    images, masks = quadrants()
    affine = random_affine(8, (64, 96), (64, 96), draws())
    seen = warp_images(images, affine, (64, 96)).round()
    labels = warp_masks(masks, affine, (64, 96), 255)
    pure = torch.isin(seen, torch.tensor([0.0, 200.0])).all(dim=1) & (labels != 255)
    assert pure.float().mean() > 0.5
    assert torch.equal((seen[:, 0] + 2 * seen[:, 1])[pure], labels[pure] * 200.0)


def test_outside_the_image_the_mask_is_ignored_and_the_image_black() -> None:
    images, masks = quadrants()
    twice_as_wide = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]]).expand(8, -1, -1)
    labels = warp_masks(masks, twice_as_wide, (64, 96), 255)
    seen = warp_images(images, twice_as_wide, (64, 96))
    assert (labels[:, :15] == 255).all()
    assert (labels[:, 17:47, 25:71] != 255).all()
    assert seen[:, :, :15].sum() == 0


def test_masks_come_on_the_grid_of_the_generators_logits() -> None:
    images, masks = quadrants()
    seen, labels = augment(images, masks, (64, 96), 2, 255, draws())
    assert seen.shape == (8, 3, 64, 96)
    assert labels.shape == (8, 32, 48)
    assert seen.min() >= 0
    assert seen.max() <= 255


def test_one_seed_gives_one_view_and_another_seed_another() -> None:
    images, masks = quadrants()
    first, again, other = (augment(images, masks, (64, 96), 2, 255, draws(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_light_changes_but_a_uniform_image_stays_uniform() -> None:
    lit = jitter_light(torch.full((4, 3, 8, 8), 100.0), draws())
    assert (lit.flatten(2).std(dim=2) < 1e-3).all()
    assert lit.mean(dim=(1, 2, 3)).unique().numel() == 4


@pytest.mark.parametrize(
    ("working", "crop"),
    [((64, 96), (64, 96)), ((352, 480), (160, 224)), ((32, 2048), (32, 1504)), ((32, 32), (32, 32))],
)
def test_crops_are_cheap_and_fit_the_networks(working: tuple[int, int], crop: tuple[int, int]) -> None:
    height, width = crop_size(working)
    assert height % 32 == width % 32 == 0
    assert height <= working[0]
    assert width <= working[1]
    assert (height, width) == crop
