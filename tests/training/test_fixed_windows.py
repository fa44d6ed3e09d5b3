"""What is measured on labelled images: the same at every time, whatever it shows, and never too much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segpipe.training import fixed_windows as module
from segpipe.training.fixed_windows import drawn_windows, fixed_windows
from tests.support.labelled_arrays import IGNORED, in_memory, plain_spec

FITTED = plain_spec(("ground", "disc"), (32, 64))
SCALED = FITTED.model_copy(update={"scale": 1.0, "tile": (64, 64), "margin": 16})


def numbered(height: int, width: int) -> np.ndarray:
    return (np.arange(height * width) % 199).astype(np.uint8).reshape(height, width)


def test_fitted_images_are_measured_whole_and_in_order() -> None:
    masks = [numbered(32, 64) + np.uint8(row) for row in range(5)]
    labelled = in_memory([np.stack([mask] * 3) for mask in masks], masks, 2)
    batches = list(fixed_windows(labelled, FITTED, seed=0).batches(labelled, 2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert np.array_equal(torch.cat([shown for _, shown in batches]), np.stack(masks))
    assert np.array_equal(torch.cat([images for images, _ in batches])[:, 1], np.stack(masks))


def test_windows_cover_an_image_and_a_small_image_is_padded() -> None:
    sizes = torch.tensor([[64, 100], [20, 64]])
    windows = drawn_windows(sizes, (32, 64), most=99, seed=0)
    # 100 pixels take two windows of 64, which begin as far apart as they can.
    assert windows.rows.tolist() == [0, 0, 0, 0, 1]
    assert windows.corners.tolist() == [[0, 0], [0, 36], [32, 0], [32, 36], [0, 0]]
    masks = [numbered(64, 100), numbered(20, 64)]
    labelled = in_memory([np.stack([mask] * 3) for mask in masks], masks, 2, fitted=False)
    (_, shown), (_, last) = windows.batches(labelled, 4)
    assert np.array_equal(shown[3], masks[0][32:, 36:])
    assert np.array_equal(last[0, :20], masks[1])
    assert (last[0, 20:] == IGNORED).all()


def test_of_many_windows_so_many_are_drawn_evenly_by_the_seed() -> None:
    sizes = torch.tensor([[320, 320]] * 40)
    first, again, other = (drawn_windows(sizes, (32, 32), 1000, seed) for seed in (1, 1, 2))
    assert len(first) == 1000
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.corners, again.corners)
    assert not torch.equal(first.corners, other.corners)
    assert (
        len({(row, *corner) for row, corner in zip(first.rows.tolist(), first.corners.tolist(), strict=True)})
        == 1000
    )
    for axis in (0, 1):  # a quarter of all windows, so 100 of each of ten places, with a deviation of 9
        assert torch.bincount(first.corners[:, axis] // 32).sub(100).abs().max() < 40


@pytest.mark.parametrize(("n_images", "most"), [(4, 25 * 1024), (100, 100 * 32 * 64)])
def test_measuring_costs_what_it_costs_where_images_are_fitted(
    n_images: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST_PIXELS", 25 * 1024)
    masks = [numbered(300, 200)] * n_images
    labelled = in_memory([np.stack([mask] * 3) for mask in masks], masks, 2, fitted=False)
    windows = fixed_windows(labelled, SCALED, seed=3)
    assert windows.size == (64, 64)
    assert most - 64 * 64 < len(windows) * math.prod(windows.size) <= most


def test_windows_are_no_larger_than_the_images_need() -> None:
    masks = [numbered(40, 20), numbered(33, 30)]
    labelled = in_memory([np.stack([mask] * 3) for mask in masks], masks, 2, fitted=False)
    assert fixed_windows(labelled, SCALED, seed=0).size == (48, 32)
