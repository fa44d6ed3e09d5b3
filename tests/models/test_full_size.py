"""The mask at the image's own size is the argmax of the bilinear logits, however it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from segpipe.models import full_size


def full_size_mask(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    return full_size.full_size_mask(logits, logits.argmax(0).to(torch.uint8), size)


def reference(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    return functional.interpolate(logits[None], size=size, mode="bilinear")[0].argmax(0).numpy()


def smooth_logits(seed: int, n_classes: int, height: int, width: int) -> Tensor:
    """Regions of one class with borders between them, as a generator's are."""
    noise = torch.randn(1, n_classes, height, width, generator=torch.Generator().manual_seed(seed))
    return functional.avg_pool2d(noise, 3, 1, 1)[0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_classes=st.integers(2, 12),
    grid=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_it_is_the_argmax_of_the_logits_at_full_size(
    seed: int, n_classes: int, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    logits = smooth_logits(seed, n_classes, *grid)
    mask = full_size_mask(logits, size)
    assert mask.dtype == np.uint8
    # Where two classes are equal but for the last bit of a float either is right.
    assert (mask != reference(logits, size)).mean() <= 0.002


def test_the_way_of_a_gpu_gives_the_same_mask_some_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = smooth_logits(2, 7, 12, 16)
    for at_once in (1, 90 * 110 * 2, 90 * 110 * 100):
        monkeypatch.setattr(full_size, "RAISED_AT_ONCE", at_once)
        assert np.array_equal(
            full_size.raised(logits[None], (90, 110))[0].numpy(), full_size_mask(logits, (90, 110))
        )


@pytest.mark.parametrize("at_once", [1, 3 * 90 * 110 * 7, 10**7])
def test_a_batch_of_several_sizes_is_raised_as_one_by_one(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "RAISED_AT_ONCE", at_once)
    logits = torch.stack([smooth_logits(seed, 7, 12, 16) for seed in range(8)])
    labels = logits.argmax(1).to(torch.uint8)
    sizes = [(90, 110), (12, 16), (90, 110), (40, 31), (90, 110), (40, 31), (90, 110), (1, 1)]
    masks = full_size.raised_each(logits, labels, sizes)
    for mask, one, size in zip(masks, logits, sizes, strict=True):
        assert np.array_equal(mask.numpy(), full_size_mask(one, size))
