"""How often training looks at rare classes, and what it sees of images at their own scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segpipe.training.labelled_pixels import LabelledPixels
from segpipe.training.views import draw_views, emphasise
from tests.support.labelled_arrays import IGNORED, in_memory

CROP = (32, 64)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def surfaces(
    n_images: int, defective: int, size: tuple[int, int] = (256, 352), fitted: bool = True
) -> LabelledPixels:
    """Images of which the first ones have 9x9 pixels of class 1; red says what the mask says."""
    masks = [np.zeros(size, np.uint8) for _ in range(n_images)]
    random = np.random.default_rng(0)
    for mask in masks[:defective]:
        y, x = random.integers(0, np.array(size) - 9)
        mask[y : y + 9, x : x + 9] = 1
    images = [np.stack([mask * 200, np.full(size, 100, np.uint8), mask * 0]) for mask in masks]
    return in_memory(images, masks, 2, fitted)


@pytest.mark.parametrize(
    ("n_images", "defective", "weight", "chance"),
    [
        (9, 9, 1.0, 1 / 3),  # all show one: a third of their views are around it
        (8, 4, 1.0, 2 / 3),
        (9, 3, 2.0, 2 / 3),  # drawn twice as often they are half of all
        (50, 1, 8.0, 2 / 3),  # no image is drawn more than eight times as often for it
        (9, 0, 1.0, 0.0),
    ],
)
def test_a_third_of_the_views_is_around_rare_classes_where_there_are_images_enough(
    n_images: int, defective: int, weight: float, chance: float
) -> None:
    emphasis = emphasise(surfaces(n_images, defective), torch.arange(n_images))
    assert emphasis.weights.tolist() == pytest.approx([weight] * defective + [1.0] * (n_images - defective))
    assert emphasis.chance == pytest.approx(chance)


def test_the_emphasis_is_of_the_rows_that_are_taught_and_on_top_of_their_weights() -> None:
    labelled = replace(
        surfaces(8, 2), weights=torch.tensor([1.0, 9, 0.5, 1, 1, 1, 1, 1], dtype=torch.float64)
    )
    # Of rows 0, 2, 3, 4 one in 3.5 shows a rare class: 2.5 times as often it is half.
    emphasis = emphasise(labelled, torch.tensor([0, 2, 3, 4]))
    assert emphasis.weights.tolist() == pytest.approx([2.5, 0.5, 1, 1])


@pytest.mark.parametrize("fitted", [True, False])
def test_views_around_a_rare_class_show_it_and_others_do_as_chance_has_it(fitted: bool) -> None:
    labelled = surfaces(64, 64, fitted=fitted)
    shares = []
    for chance in (0.0, 1.0):
        _, labels = draw_views(labelled, torch.arange(64), CROP, 2, chance, draws())
        shares.append((labels == 1).any(dim=2).any(dim=1).float().mean().item())
    assert shares[0] < 0.15
    assert shares[1] > 0.95


@pytest.mark.parametrize("fitted", [True, False])
def test_an_image_without_a_rare_class_is_seen_as_without_a_chance_of_it(fitted: bool) -> None:
    labelled = surfaces(4, 2, fitted=fitted)
    for chance in (0.5, 1.0):
        seen, labels = draw_views(labelled, torch.tensor([2, 3]), CROP, 2, chance, draws())
        assert seen.shape == (2, 3, *CROP)
        assert set(labels.unique().tolist()) <= {0, IGNORED}


@pytest.mark.parametrize("size", [(256, 352), (20, 40), (32, 500)])
def test_windows_show_what_the_whole_image_shows(size: tuple[int, int]) -> None:
    whole, scaled = (surfaces(16, 16, size, fitted) for fitted in (True, False))
    for chance in (0.0, 1.0):
        (seen, labels), (cut, cut_labels) = (
            draw_views(labelled, torch.arange(16), CROP, 2, chance, draws(3)) for labelled in (whole, scaled)
        )
        # Sampling positions differ in the last digits of a float.
        assert (seen - cut).abs().quantile(0.99) < 1
        assert (labels != cut_labels).float().mean() < 0.002
        assert (labels == IGNORED).any() == (cut_labels == IGNORED).any()


def test_views_of_images_of_different_sizes_come_in_one_batch() -> None:
    sizes = [(300, 400), (10, 500), (1, 1)]
    masks = [np.ones(size, np.uint8) for size in sizes]
    images = [np.full((3, *size), 90, np.uint8) for size in sizes]
    seen, labels = draw_views(in_memory(images, masks, 2, False), torch.arange(3), CROP, 2, 0.3, draws(1))
    shown = (labels == 1).flatten(1).float().mean(dim=1)
    assert shown[0] > 0.9
    assert 0.1 < shown[1] < 0.7
    assert shown[2] < 0.01
    assert ((seen[2] > 60).any(dim=0).float().mean()) < 0.05, "black outside the image"


def test_one_seed_draws_one_view_and_another_seed_another() -> None:
    labelled = surfaces(6, 3, fitted=False)
    first, again, other = (
        draw_views(labelled, torch.arange(6), CROP, 2, 0.5, draws(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
