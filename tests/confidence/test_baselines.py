from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.confidence import baselines
from segpipe.confidence.score import expected_class_ious


def image(*pixels: list[float]) -> torch.Tensor:
    """One image of one row: a list of class probabilities per pixel."""
    return torch.tensor(pixels).T[None, :, None, :]


MIXED = image([0.7, 0.2, 0.1], [0.4, 0.5, 0.1])
CERTAIN = image([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
UNIFORM = torch.full((1, 3, 4, 4), 1 / 3)
ONE_CLASS = image([0.9, 0.1], [0.7, 0.3])
SINGLE_IMAGE_SCORES = [baselines.max_softmax, baselines.entropy, baselines.soft_dice, baselines.soft_iou]


@pytest.mark.parametrize("score", SINGLE_IMAGE_SCORES)
def test_certainty_scores_one(score):
    assert score(CERTAIN).tolist() == [1.0]


def test_max_softmax_is_the_mean_largest_probability():
    assert baselines.max_softmax(MIXED).item() == pytest.approx(0.6)
    assert baselines.max_softmax(UNIFORM).item() == pytest.approx(1 / 3)


def test_entropy_is_relative_to_the_uniform_distribution():
    nats = [-sum(p * math.log(p) for p in pixel) for pixel in ([0.7, 0.2, 0.1], [0.4, 0.5, 0.1])]
    assert baselines.entropy(MIXED).item() == pytest.approx(1 - sum(nats) / 2 / math.log(3))
    assert baselines.entropy(UNIFORM).item() == pytest.approx(0, abs=1e-6)


def test_soft_dice_is_the_mean_over_predicted_classes():
    first = 2 * 0.7 / (0.7 + 0.4 + 1)
    second = 2 * 0.5 / (0.2 + 0.5 + 1)
    assert baselines.soft_dice(MIXED).item() == pytest.approx((first + second) / 2)


def test_soft_iou_is_the_mean_over_predicted_classes():
    """Of the first class: 0.7 right of one pixel shown and 0.4 of another missed."""
    first = 0.7 / (1 + 0.4)
    second = 0.5 / (1 + 0.2)
    assert baselines.soft_iou(MIXED).item() == pytest.approx((first + second) / 2)


@given(seed=st.integers(0, 2**32 - 1), n_classes=st.integers(2, 5))
def test_soft_iou_is_the_expected_iou_of_who_believes_the_generator(seed, n_classes):
    draws = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(1, n_classes, 6, 7, generator=draws).softmax(dim=1)
    surest, labels = probabilities.max(dim=1, keepdim=True)
    shown = torch.zeros_like(probabilities).scatter_(1, labels, 1.0)
    ious = expected_class_ious(shown, probabilities, surest)
    mean = ious.sum() / shown.amax(dim=(2, 3)).sum()
    assert baselines.soft_iou(probabilities).item() == pytest.approx(mean.item(), rel=1e-4)


def test_soft_dice_of_one_class_filling_the_image():
    assert baselines.soft_dice(ONE_CLASS).item() == pytest.approx(2 * 1.6 / (1.6 + 2))


def test_soft_dice_of_a_constant_uniform_image():
    assert baselines.soft_dice(UNIFORM).item() == pytest.approx(2 * (16 / 3) / (16 / 3 + 16))


def test_soft_dice_prefers_sure_background_to_doubtful_background():
    doubtful = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    sure = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    assert baselines.soft_dice(doubtful).item() < baselines.soft_dice(sure).item()


def test_flip_tta_is_one_when_the_mirror_image_gets_the_mirror_mask():
    assert baselines.flip_tta(MIXED, MIXED.flip(-1)).tolist() == [1.0]


def test_flip_tta_compares_masks_after_flipping_back():
    mask = image([1, 0, 0], [1, 0, 0], [0, 1, 0]).float()
    # flipped back: classes 0, 1, 2; Dice 2/3 for class 0, 0 for class 1 and 2
    flipped = image([0, 0, 1], [0, 1, 0], [1, 0, 0]).float()
    assert baselines.flip_tta(mask, flipped).item() == pytest.approx(2 / 9)


def test_flip_tta_of_one_class_everywhere():
    assert baselines.flip_tta(ONE_CLASS, ONE_CLASS).tolist() == [1.0]


@settings(deadline=None)  # the first call of torch is slow
@given(seed=st.integers(0, 10_000), n_classes=st.integers(2, 5))
def test_scores_stay_in_range_and_treat_images_of_a_batch_apart(seed, n_classes):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(3, n_classes, 4, 6, generator=generator).mul(3).softmax(dim=1)
    scores = [*SINGLE_IMAGE_SCORES, lambda p: baselines.flip_tta(p, p)]
    for score in scores:
        together = score(probabilities)
        assert together.shape == (3,)
        assert bool(((together >= -1e-6) & (together <= 1 + 1e-6)).all())
        torch.testing.assert_close(together, torch.cat([score(one[None]) for one in probabilities]))
