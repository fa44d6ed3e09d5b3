from __future__ import annotations

import pytest
import torch

from segpipe.confidence.score import class_confidences, class_fractions, discriminator_score

MASK = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]], [[2, 2, 2, 2], [2, 2, 2, 2]]])


def logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability)))


def test_discriminator_score_is_the_mean_logit_of_each_image():
    logits = torch.tensor([[[[1.0, 3.0]]], [[[-2.0, -4.0]]]])
    assert discriminator_score(logits).tolist() == [2.0, -3.0]


def test_discriminator_score_ranks_images_where_the_sigmoid_has_saturated():
    logits = torch.stack([torch.full((1, 2, 2), 40.0), torch.full((1, 2, 2), 41.0)])
    first, second = discriminator_score(logits)
    assert first < second


def test_half_precision_maps_are_averaged_in_single_precision():
    assert discriminator_score(torch.ones(1, 1, 300, 300, dtype=torch.bfloat16)).item() == 1.0


def test_class_fractions_count_pixels():
    assert class_fractions(MASK, 3).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]


def test_class_fractions_of_byte_masks_with_many_classes():
    mask = torch.arange(200, dtype=torch.uint8).view(1, 10, 20)
    assert torch.equal(class_fractions(mask.repeat(3, 1, 1), 200), torch.full((3, 200), 1 / 200))


def test_class_confidences_average_the_probability_over_each_predicted_class():
    rows = [[logit(0.9), logit(0.7), logit(0.2), logit(0.4)]] * 2
    logits = torch.tensor([[rows], [[[0.0] * 4] * 2]])
    confidences = class_confidences(MASK, logits, 3)
    torch.testing.assert_close(
        confidences,
        torch.tensor([[0.8, 0.3, torch.nan], [torch.nan, torch.nan, 0.5]]),
        equal_nan=True,
    )


def test_class_confidences_interpolate_a_coarse_map_to_the_mask():
    logits = torch.tensor([[[[logit(0.8), logit(0.2)]]]])
    # half-pixel bilinear from 2 to 4 columns: 0.8, 0.65, 0.35, 0.2
    confidences = class_confidences(MASK[:1], logits, 3)
    torch.testing.assert_close(confidences[0, :2], torch.tensor([0.725, 0.275]))


def test_a_class_outside_the_model_is_refused():
    with pytest.raises(ValueError, match="class 3"):
        class_fractions(torch.tensor([[[0, 3]]]), 3)
