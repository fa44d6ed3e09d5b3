"""The numbers that route and are shown, against values worked out by hand and a plain loop."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from segpipe.confidence.score import (
    Belief,
    ClassSums,
    adversarial_score,
    agreement,
    agreement_sums,
    class_sums,
    expected_class_ious,
    expected_iou,
    iou_logit,
    missed_pixels,
    own_sums,
    routing_score,
    sure_precision,
)
from segpipe.metrics import IouRule, image_iou

RULES: tuple[IouRule, ...] = get_args(IouRule)


def hard(mask: list[list[int]] | torch.Tensor, n_classes: int) -> torch.Tensor:
    """One mask (h,w) of class indices as (1,K,h,w)."""
    return one_hot(torch.as_tensor(mask), n_classes).permute(2, 0, 1)[None].float()


def maps(*classes: list[list[float]]) -> torch.Tensor:
    return torch.tensor([classes])


def test_adversarial_score_is_the_mean_logit_of_each_image() -> None:
    logits = torch.tensor([[[[1.0, 3.0]]], [[[-2.0, -4.0]]]])
    assert adversarial_score(logits).tolist() == [2.0, -3.0]


def test_adversarial_score_ranks_images_where_the_sigmoid_has_saturated() -> None:
    first, second = adversarial_score(torch.stack([torch.full((1, 2, 2), level) for level in (40.0, 41.0)]))
    assert first < second


def test_half_precision_maps_are_averaged_in_single_precision() -> None:
    assert adversarial_score(torch.ones(1, 1, 300, 300, dtype=torch.bfloat16)).item() == 1.0


def test_two_classes_by_hand() -> None:
    shown = hard([[0, 0], [0, 1]], 2)
    probabilities = maps([[0.9, 0.7], [0.6, 0.2]], [[0.1, 0.3], [0.4, 0.8]])
    correctness = maps([[0.9, 0.8], [0.5, 0.6]])
    # Of two classes a wrong label has one alternative: class 1 misses 0.1 + 0.2 + 0.5, class 0 misses 0.4.
    torch.testing.assert_close(missed_pixels(shown, probabilities, correctness), torch.tensor([[0.4, 0.8]]))
    torch.testing.assert_close(
        expected_class_ious(shown, probabilities, correctness), torch.tensor([[2.2 / 3.4, 0.6 / 1.8]])
    )


def test_three_classes_by_hand_where_the_doubt_is_split_as_the_generator_would() -> None:
    shown = hard([[0, 0], [1, 1]], 3)
    probabilities = maps(
        [[0.5, 0.8], [0.25, 0.1]],
        [[0.3, 0.1], [0.5, 0.6]],
        [[0.2, 0.1], [0.25, 0.3]],
    )
    correctness = maps([[0.8, 0.6], [0.5, 0.9]])
    missed = [
        0.5 * 0.25 / 0.5 + 0.1 * 0.1 / 0.4,
        0.2 * 0.3 / 0.5 + 0.4 * 0.1 / 0.2,
        0.2 * 0.2 / 0.5 + 0.4 * 0.1 / 0.2 + 0.5 * 0.25 / 0.5 + 0.1 * 0.3 / 0.4,
    ]
    ious = expected_class_ious(shown, probabilities, correctness)
    torch.testing.assert_close(missed_pixels(shown, probabilities, correctness), torch.tensor([missed]))
    torch.testing.assert_close(ious, torch.tensor([[1.4 / (2 + missed[0]), 1.4 / (2 + missed[1]), 0.0]]))
    # The third class is not shown; it is in the truth with probability 0.4, and has then IoU 0.
    whole = expected_iou(
        ious, torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.1, 0.9, 0.4]]), "every_class"
    )
    assert whole.item() == pytest.approx((1.4 / (2 + missed[0]) + 1.4 / (2 + missed[1])) / 2.4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_one_class_that_fills_everything_is_all_right_or_all_wrong(right: float, rule: IouRule) -> None:
    shown = hard([[2, 2], [2, 2]], 3)
    probabilities = maps([[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2, [[1.0, 1.0]] * 2)
    ious = expected_class_ious(shown, probabilities, torch.full((1, 1, 2, 2), right))
    assert ious.tolist() == [[0.0, 0.0, right]]
    shares = torch.tensor([[0.0, 0.0, 1.0]])
    assert expected_iou(ious, shares, torch.zeros(1, 3), rule).item() == right
    assert expected_iou(ious, shares, torch.ones(1, 3), rule).item() == pytest.approx(right / 3)


def test_labels_that_are_certainly_right_or_wrong_by_hand() -> None:
    shown = hard([[0, 1], [1, 1]], 2)
    probabilities = maps([[0.6, 0.4], [0.4, 0.4]], [[0.4, 0.6], [0.6, 0.6]])
    right = expected_class_ious(shown, probabilities, torch.ones(1, 1, 2, 2))
    wrong = expected_class_ious(shown, probabilities, torch.zeros(1, 1, 2, 2))
    assert right.tolist() == [[1.0, 1.0]]
    assert wrong.tolist() == [[0.0, 0.0]]


def by_loop(
    mask: np.ndarray,
    probabilities: np.ndarray,
    correctness: np.ndarray,
    presence: np.ndarray,
    rule: IouRule,
) -> tuple[list[float], float]:
    """The docstring's formula, pixel by pixel: IoU of each class, and their mean as the image's."""
    ious, weights = [], []
    for c, p in enumerate(probabilities):
        right = count = missed = 0.0
        for at in np.ndindex(mask.shape):
            if mask[at] == c:
                right, count = right + correctness[at], count + 1
            else:
                missed += (1 - correctness[at]) * p[at] / max(1e-4, 1 - probabilities[(mask[at], *at)])
        ious.append(right / (count + missed) if count else 0.0)
        invented = 1.0 if rule == "every_class" else min(1.0, count / mask.size / 0.01)
        there = max(presence[c], ious[c])
        weights.append(there + (1 - there) * invented if count else presence[c])
    return ious, sum(ious) / sum(weights)


seeds = st.integers(0, 2**32 - 1)


@example(seed=22125, n_classes=2, height=1, width=2, rule="every_class")  # a probability of 0.99996
@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    n_classes=st.integers(2, 5),
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    rule=st.sampled_from(RULES),
)
def test_the_formula_is_what_a_plain_loop_gives(
    seed: int, n_classes: int, height: int, width: int, rule: IouRule
) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(n_classes, size=(2, height, width))
    logits = rng.normal(0, 2, (2, n_classes, height, width))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    correctness, presence = rng.random((2, height, width)), rng.random((2, n_classes))
    shown = torch.cat([hard(mask, n_classes) for mask in torch.from_numpy(masks)]).double()
    ious = expected_class_ious(
        shown, torch.from_numpy(probabilities), torch.from_numpy(correctness).unsqueeze(1)
    )
    whole = expected_iou(ious, shown.mean(dim=(2, 3)), torch.from_numpy(presence), rule)
    for row in range(2):
        per_class, mean = by_loop(masks[row], probabilities[row], correctness[row], presence[row], rule)
        assert ious[row].tolist() == pytest.approx(per_class, rel=1e-3, abs=1e-9)
        assert whole[row].item() == pytest.approx(mean, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("sharpness", [1.0, 15.0, 100.0])
def test_single_precision_is_enough_where_a_sure_generator_is_doubted(sharpness: float) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(1, 7, 100, 120, generator=draws)
    probabilities, shown = logits.softmax(dim=1), hard(logits.argmax(dim=1)[0], 7)
    correctness = torch.full((1, 1, 100, 120), 0.5)
    exact = missed_pixels(shown.double(), probabilities.double(), correctness.double())
    torch.testing.assert_close(
        missed_pixels(shown, probabilities, correctness).double(), exact, rtol=1e-4, atol=0.01
    )


@settings(max_examples=60, deadline=None)
@given(seed=seeds, n_classes=st.integers(2, 6), sharpness=st.sampled_from([0.1, 5.0, 1e4]))
def test_an_expected_iou_is_from_0_to_1_however_sure_anyone_is(
    seed: int, n_classes: int, sharpness: float
) -> None:
    draws = torch.Generator().manual_seed(seed)
    shown = hard(torch.randint(n_classes, (4, 6), generator=draws), n_classes)
    probabilities = (sharpness * torch.randn(1, n_classes, 4, 6, generator=draws)).softmax(dim=1)
    correctness = (sharpness * torch.randn(1, 1, 4, 6, generator=draws)).sigmoid()
    presence = torch.rand(1, n_classes, generator=draws)
    ious = expected_class_ious(shown, probabilities, correctness)
    present = shown.amax(dim=(2, 3)) > 0
    shares = shown.mean(dim=(2, 3))
    for values in (ious, *(expected_iou(ious, shares, presence, rule) for rule in RULES)):
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6
    assert (ious[~present] == 0).all()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, n_classes=st.integers(2, 5), rule=st.sampled_from(RULES))
def test_who_knows_the_truth_expects_the_true_iou(seed: int, n_classes: int, rule: IouRule) -> None:
    rng = np.random.default_rng(seed)
    rarely = np.array([1.0] * (n_classes - 1) + [0.005])  # the last is often in the mask or the truth alone
    mask, truth = rng.choice(n_classes, p=rarely / rarely.sum(), size=(2, 14, 15))
    truth = np.where(rng.random(truth.shape) < 0.5, mask, truth)
    # The generator gives the label shown 0.6 and, where it is wrong, the right one all of the rest.
    other = np.where(truth == mask, (mask + 1) % n_classes, truth)
    probabilities = 0.6 * hard(torch.from_numpy(mask), n_classes) + 0.4 * hard(
        torch.from_numpy(other), n_classes
    )
    shown = hard(torch.from_numpy(mask), n_classes)
    correctness = torch.from_numpy(mask == truth).float()[None, None]
    presence = torch.from_numpy(np.isin(np.arange(n_classes), truth)).float()[None]
    ious = expected_class_ious(shown, probabilities, correctness)
    expected = expected_iou(ious, shown.mean(dim=(2, 3)), presence, rule).item()
    assert expected == pytest.approx(image_iou(truth, mask, n_classes, 255, rule), abs=1e-5)


@given(seed=seeds, n_classes=st.integers(2, 5))
@pytest.mark.parametrize(("belief", "temperature"), [("plain", 1), ("softened", 2)])
def test_own_sums_are_those_of_a_label_as_right_as_its_probability_at_this_temperature(
    seed: int, n_classes: int, belief: Belief, temperature: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, n_classes, 6, 7, generator=draws)
    shown = hard(logits.argmax(dim=1)[0], n_classes)
    believed = (logits / temperature).softmax(dim=1)
    as_right = believed.gather(1, logits.argmax(dim=1, keepdim=True))
    expected, found = class_sums(shown, believed, as_right), own_sums(shown, logits.softmax(dim=1), belief)
    for name in ("right", "shown", "missed"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_a_class_that_is_shown_is_there_as_surely_as_the_generator_believes_by_hand() -> None:
    """A tenth of 1,000 pixels shows class 1, right by 0.2; the judge's word counts for class 2, not shown."""
    sums = ClassSums(
        right=torch.tensor([[810.0, 20.0, 0.0]]),
        shown=torch.tensor([[900.0, 100.0, 0.0]]),
        missed=torch.tensor([[80.0, 90.0, 0.0]]),
    )
    shares, presence = torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([[0.1, 0.9, 0.25]])
    # Both fill more than a hundredth of the pixels and count in full, class 2 as surely as it is there.
    right = 0.9 * 0.9 + 0.2 * 0.2
    for rule in get_args(IouRule):
        assert sure_precision(sums, shares, presence, rule).item() == pytest.approx(right / 2.25, rel=1e-5)
    # Of half a hundredth: there by 0.2, else it weighs a half.
    shares = torch.tensor([[0.995, 0.005, 0.0]])
    by_hand = right / (1 + 0.2 + 0.8 * 0.5 + 0.25)
    assert sure_precision(sums, shares, presence, "graded").item() == pytest.approx(by_hand, rel=1e-5)


def test_the_logit_of_an_iou_is_finite_at_both_ends_and_keeps_the_order() -> None:
    logits = iou_logit(torch.tensor([0.0, 0.01, 0.5, 0.9, 1.0]))
    assert torch.isfinite(logits).all()
    assert (logits.diff() > 0).all()
    assert logits[2].item() == 0
    assert logits[3].item() == pytest.approx(math.log(9))


def test_the_score_weighs_its_parts() -> None:
    parts = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -1.0, 0.5, 0.0]])
    combination = torch.tensor([0.25, 1.0, 0.5, 2.0, 0.0])
    assert routing_score(parts, combination).tolist() == [8.25, 0.75]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_classes=st.integers(2, 6))
def test_agreement_is_the_mean_iou_of_two_masks_over_the_classes_in_either(seed: int, n_classes: int) -> None:
    draws = np.random.default_rng(seed)
    first, second = draws.integers(0, n_classes, (2, 5, 7))
    ious = [
        ((first == c) & (second == c)).sum() / ((first == c) | (second == c)).sum()
        for c in range(n_classes)
        if (first == c).any() or (second == c).any()
    ]
    shown = hard(torch.from_numpy(first), n_classes)
    sums = agreement_sums(shown, torch.from_numpy(second)[None])
    assert agreement(sums).item() == pytest.approx(np.mean(ious), rel=1e-5)


def test_masks_that_are_alike_agree_and_those_of_other_classes_do_not() -> None:
    labels = torch.tensor([[0, 1], [1, 2]])
    alike, other = (agreement_sums(hard(labels, 4), seen[None]) for seen in (labels, torch.full((2, 2), 3)))
    assert agreement(alike).item() == 1
    assert agreement(other).item() == 0
