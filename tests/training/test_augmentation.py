"""Random views: image and mask move together, and nothing is made up outside the image."""

from __future__ import annotations

import pytest
import torch

from segpipe.training.augmentation import (
    augment,
    borrow_colours,
    crop_size,
    is_grey,
    jitter_light,
    random_affine,
    show_negatives,
    warp_images,
    warp_masks,
    window_affine,
    window_size,
)

SIZES = torch.tensor([[64, 96]]).expand(8, 2)


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
    affine = random_affine(SIZES, (64, 96), draws())
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
    affine = random_affine(SIZES, (64, 96), draws())
    seen, labels = augment(images, masks, affine, (64, 96), 2, 255, draws())
    assert seen.shape == (8, 3, 64, 96)
    assert labels.shape == (8, 32, 48)
    assert seen.min() >= 0
    assert seen.max() <= 255


def view(images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    affine = random_affine(SIZES, (64, 96), generator)
    return augment(images, masks, affine, (64, 96), 2, 255, generator)[0]


def test_one_seed_gives_one_view_and_another_seed_another() -> None:
    images, masks = quadrants()
    first, again, other = (view(images, masks, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_of_the_images_lose_or_gain_colour_and_all_stay_in_range() -> None:
    coloured = torch.tensor([200.0, 100, 50]).view(1, 3, 1, 1).expand(400, 3, 4, 4)
    lit = jitter_light(coloured, draws())
    assert lit.min() >= 0
    assert lit.max() <= 255
    spread = lit.mean(dim=(2, 3)).amax(dim=1) - lit.mean(dim=(2, 3)).amin(dim=1)
    assert (spread < 40).float().mean() > 0.05, "some are all but grey"
    assert (spread > 190).float().mean() > 0.05, "some are more colourful"


def test_a_twentieth_of_the_grey_images_are_negatives_and_all_others_as_they_were() -> None:
    images = torch.tensor([0.0, 60, 200, 255.00002]).expand(4000, 3, 1, 4)
    grey = torch.arange(4000) % 2 == 0
    seen = show_negatives(images, grey, draws())
    negative = (seen == torch.tensor([255.0, 195, 55, 0])).all(dim=(1, 2, 3))
    untouched = (seen == images).all(dim=(1, 2, 3))
    assert (negative ^ untouched).all()
    assert untouched[~grey].all()
    assert 0.035 < negative[grey].float().mean() < 0.065


def test_an_image_is_grey_whose_channels_are_the_same_but_for_rounding() -> None:
    grey = torch.randint(0, 255, (1, 1, 8, 8), dtype=torch.uint8).expand(1, 3, 8, 8)
    rounded = grey + torch.tensor([0, 1, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    tinted = torch.tensor([90, 93, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert is_grey(torch.cat([grey, rounded, tinted])).tolist() == [True, True, False]


def test_without_grey_images_nothing_is_drawn_for_negatives() -> None:
    """Trainings on photographs stay what they were, to the bit."""
    drawn, untouched = draws(), draws()
    show_negatives(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.bool), drawn)
    assert torch.rand(1, generator=drawn).equal(torch.rand(1, generator=untouched))


def log_means(images: torch.Tensor) -> torch.Tensor:
    """(B,3) of each channel."""
    return (images + 1).log().mean(dim=(2, 3))


def test_some_images_come_in_the_colours_of_another_or_half_way_there() -> None:
    tint = torch.tensor([[80.0, 8, 8], [8, 80, 8], [8, 8, 80]]).repeat(100, 1).view(300, 3, 1, 1)
    images = tint * (0.5 + torch.rand(1, 1, 8, 8, generator=draws(3)))
    borrowed = borrow_colours(images, torch.ones(300, dtype=torch.bool), draws())
    before, after = log_means(images), log_means(borrowed)
    moved = (after - before).abs().amax(dim=1) > 0.02
    assert 0.25 < moved.float().mean() < 0.42, (
        "half of them, two thirds of whose lenders are of another colour"
    )
    change = after - before
    tinted = torch.eye(3, dtype=torch.bool).repeat(100, 1)
    assert (change[tinted][moved] < -0.01).all(), "it loses of its own colour"
    assert (change.masked_fill(tinted, -1).amax(dim=1)[moved] > 0.01).all(), "and gains of another"
    assert after.max() < before.max() + 0.1, "none is brighter than the brightest was"
    assert (borrowed >= 0).all()
    assert (borrowed <= 255).all()


def test_only_images_with_colour_borrow_it_and_only_from_such() -> None:
    tinted = torch.tensor([90.0, 10, 10]).view(1, 3, 1, 1) * torch.rand(1, 3, 8, 8, generator=draws(1))
    grey = (255 * torch.rand(3, 1, 8, 8, generator=draws(2))).expand(-1, 3, -1, -1)
    alone = torch.cat([tinted, grey])
    for coloured in ([True, False, False, False], [False] * 4):
        generator = draws()
        assert borrow_colours(alone, torch.tensor(coloured), generator) is alone
        assert torch.equal(generator.get_state(), draws().get_state()), "what was drawn before is drawn now"
    two = torch.cat([tinted, tinted.flip(1), grey])
    coloured = torch.tensor([True, True, False, False, False])
    seen = torch.stack([borrow_colours(two, coloured, draws(seed)) for seed in range(20)])
    assert torch.equal(seen[:, 2:], grey.expand(20, -1, -1, -1, -1))
    assert not torch.equal(seen[:, :2], two[:2].expand(20, -1, -1, -1, -1))


def test_the_noise_of_a_nearly_uniform_image_stays_small() -> None:
    sky = torch.tensor([40.0, 80, 160]).view(1, 3, 1, 1) + torch.rand(1, 3, 16, 16, generator=draws(1))
    street = 255 * torch.rand(1, 3, 16, 16, generator=draws(2))
    for seed in range(20):
        seen = borrow_colours(torch.cat([sky, street]), torch.ones(2, dtype=torch.bool), draws(seed))
        assert (seen[0].amax(dim=(1, 2)) / seen[0].amin(dim=(1, 2))).max() < 1.1


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


def seen_at(affine: torch.Tensor) -> torch.Tensor:
    """(B,4,2) where, x and y from -1 to 1 over the image, the corners of each crop lie."""
    ends = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)])
    return torch.einsum("bij,nj->bni", affine, ends)


def test_a_crop_placed_around_a_pixel_shows_it_off_its_middle_too() -> None:
    pixels = torch.tensor([[0, 0], [199, 299], [100, 10], [30, 290]]).repeat(200, 1).double()
    sizes = torch.tensor([[200, 300]]).expand(800, 2)
    affine = random_affine(sizes, (64, 96), draws(), pixels)
    place = (2 * pixels + 1) / sizes - 1
    homogeneous = torch.cat([affine, torch.tensor([[[0.0, 0, 1]]]).expand(800, 1, 3)], dim=1)
    target = torch.cat([place.flip(1), torch.ones(800, 1)], dim=1).float().unsqueeze(2)
    found = torch.linalg.solve(homogeneous, target)[:, :2, 0].abs()
    assert (found <= 0.96).all(), "also in the corners, of which a crop that leans shows less"
    assert found[3::4].amax(dim=1).gt(0.5).float().mean() > 0.3, "not always in the middle"


def test_a_crop_placed_around_a_pixel_stays_in_the_image_as_others_do() -> None:
    corner, sizes = torch.zeros(100, 2).double(), torch.tensor([[200, 300]]).expand(100, 2)
    ends = seen_at(random_affine(sizes, (64, 96), draws(), corner))
    assert (ends.mean(dim=1) - (ends.amax(dim=1) - ends.amin(dim=1)) / 2).min() > -1.15


def test_without_a_pixel_to_show_crops_lie_where_they_lay() -> None:
    nowhere = torch.full((8, 2), torch.nan).double()
    one, other = random_affine(SIZES, (32, 32), draws()), random_affine(SIZES, (32, 32), draws(), nowhere)
    assert torch.equal(one, other)


def test_a_window_holds_all_that_a_crop_shows_and_shows_the_same() -> None:
    crop, sizes = (32, 64), torch.tensor([[500, 700], [40, 700], [20, 30], [90, 64]]).repeat(50, 1)
    affine = random_affine(sizes, crop, draws())
    window = window_size(crop)
    corners, within = window_affine(affine, sizes, window)
    ends = seen_at(within)
    half_a_pixel = 1 / torch.tensor(window[::-1])
    assert (ends.abs() <= 1 - half_a_pixel).all(), "bilinear samples need a pixel on either side"
    pixels = (ends + 1) / 2 * torch.tensor(window[::-1]) + corners.flip(1).unsqueeze(1)
    expected = (seen_at(affine) + 1) / 2 * sizes.flip(1).unsqueeze(1)
    assert torch.allclose(pixels, expected, atol=1e-3)
