"""From the discriminator's outputs to the numbers that route and are shown: one per image, one per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segpipe.metrics import FULL_SHARE, IouRule

# How a generator's probabilities are taken for its own belief: as they are, or at twice their temperature.
Belief = Literal["plain", "softened"]
# Of models trained or adopted now, and of those that name none, from before there was a choice.
BELIEF: Belief = "plain"
UNNAMED_BELIEF: Belief = "softened"
# What the routing score is made of, each a logit or a mean of logits: higher is better. New ones come last:
# to a model from before they weigh nothing.
SCORE_PARTS = (
    "expected_iou",
    "correctness",
    "realness",
    "image_iou",
    "own_iou",
    "familiarity",
    "own_accuracy",
    "own_precision",
    "sure_precision",
    "agreement",
)
# An expected IoU is kept off 0 and 1, where its logit has no end.
SMALLEST_IOU = 1e-4
# 1 - p is kept off 0, where what is left of it in float32 is rounding.
SMALLEST_DOUBT = 1e-4


def adversarial_score(logits: Tensor) -> Tensor:
    """Adversarial score of each image: the mean of the discriminator's real/fake logits map.

    `logits` is (B, 1, h, w), higher meaning more like a true mask; returns (B,) float32, unbounded.
    A mean of logits, not of probabilities, still ranks images where the sigmoid has saturated.
    """
    return logits.float().mean(dim=(1, 2, 3))


def expected_class_ious(shown: Tensor, probabilities: Tensor, correctness: Tensor) -> Tensor:
    """Expected IoU of each class of each image, from how right each pixel's label is.

    `shown` (B, K, h, w) is the one-hot mask, `probabilities` (B, K, h, w) the generator's, `correctness`
    (B, 1, h, w) from 0 to 1 the probability q that the label shown is right. Where it is wrong, the truth is
    another class, in the proportions of the generator's p. For class c, with y the mask:
    sum_{y_i=c} q_i / (count(y=c) + sum_{y_i!=c} (1 - q_i) p_c(i) / max(0.0001, 1 - p_y(i))).
    Returns (B, K) float32 from 0 to 1; 0 for a class that is not shown.
    """
    return class_ious(class_sums(shown, probabilities, correctness))


@dataclass(frozen=True)
class ClassSums:
    """Sums over pixels, (B, K) each, which add up over the parts of an image.

    right: expected pixels of each class under its own label; shown: pixels that show it; missed: expected
    pixels of it under the label of another.
    """

    right: Tensor
    shown: Tensor
    missed: Tensor

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.right + other.right, self.shown + other.shown, self.missed + other.missed)


def class_sums(shown: Tensor, probabilities: Tensor, correctness: Tensor) -> ClassSums:
    """What expected_class_ious is made of; the same inputs."""
    return ClassSums(
        _sum_over_pixels(shown, correctness),
        shown.sum(dim=(2, 3)),
        missed_pixels(shown, probabilities, correctness),
    )


def class_ious(sums: ClassSums) -> Tensor:
    """Expected IoU of each class, (B, K) from 0 to 1; 0 for a class that is not shown."""
    return sums.right / (sums.shown + sums.missed).clamp(min=1.0)


def own_sums(shown: Tensor, probabilities: Tensor, belief: Belief) -> ClassSums:
    """What expected_class_ious is made of for who believes the generator: a label is right as surely as its
    probability says, and missed pixels are what the others' add up to."""
    believed = _softened(probabilities) if belief == "softened" else probabilities
    right = (believed * shown).sum(dim=(2, 3))
    return ClassSums(right, shown.sum(dim=(2, 3)), believed.sum(dim=(2, 3)) - right)


def _softened(probabilities: Tensor) -> Tensor:
    """Of the same logits, at twice the temperature (Guo et al. 2017, "On calibration of modern neural
    networks")."""
    roots = probabilities.sqrt()
    roots /= roots.sum(dim=1, keepdim=True)
    return roots


def missed_pixels(shown: Tensor, probabilities: Tensor, correctness: Tensor) -> Tensor:
    """Expected pixels of each class under the label of another, (B, K).

    Inputs as of expected_class_ious; correctness alone may need a gradient.
    """
    own = probabilities * shown
    doubt = (1 - correctness) / (1 - own.sum(dim=1, keepdim=True)).clamp(min=SMALLEST_DOUBT)
    # Taken off pixel by pixel: the difference of two sums of doubts, each up to 10,000, would be rounding.
    others = torch.sub(probabilities, own, out=own)
    return _sum_over_pixels(others, doubt)


def _sum_over_pixels(maps: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of maps (B, K, h, w) under weights (B, 1, h, w), as (B, K): one matrix product."""
    return torch.bmm(maps.flatten(2), weights.flatten(2).transpose(1, 2)).squeeze(2)


def expected_iou(class_ious: Tensor, shown: Tensor, presence: Tensor, rule: IouRule) -> Tensor:
    """Expected mean IoU of each image over the classes in its mask or its truth.

    `class_ious` (B, K) as expected_class_ious gives them, `shown` (B, K) from 0 to 1 the share of the mask's
    pixels that show each class, `presence` (B, K) from 0 to 1 the probability that the truth has the class:
    one that is there and not shown has IoU 0. One that is shown weighs by the rule (see metrics) what it
    would weigh with and without the truth having it. Returns (B,) from 0 to 1.
    """
    shown_classes = shown > 0
    if rule == "every_class":
        weights = torch.where(shown_classes, 1.0, presence)
    else:
        # A class that is right in so much of its area is there at least so surely.
        there = torch.where(shown_classes, torch.maximum(presence, class_ious), presence)
        weights = there + (1 - there) * (shown / FULL_SHARE).clamp(max=1.0)
    return (class_ious * shown_classes).sum(dim=1) / weights.sum(dim=1).clamp(min=SMALLEST_IOU)


def own_iou(own_class_ious: Tensor, shown: Tensor, presence: Tensor, rule: IouRule) -> Tensor:
    """Expected mean IoU (B,) by the generator's own belief, `own_class_ious` (B, K) of own_sums; the judge
    has a say only in which classes are there. The rest as in expected_iou.

    A class that is shown and probably not there loses by the root of its `presence`: the generator's doubt
    has counted once already. Of an image of another camera or day the judge knows little pixel by pixel.
    """
    return expected_iou(own_class_ious * presence.sqrt(), shown, presence, rule)


def own_accuracy(sums: ClassSums) -> Tensor:
    """Expected pixel accuracy (B,) from 0 to 1 by the generator's own belief, of own_sums.

    What it doubts over much of an image costs all classes there, more than their expected IoUs tell.
    """
    return sums.right.sum(dim=1) / sums.shown.sum(dim=1)


def own_precision(sums: ClassSums, shown: Tensor, presence: Tensor, rule: IouRule) -> Tensor:
    """How surely (B,) from 0 to 1 the generator believes its labels, on average over classes, of own_sums.

    Like own_iou, but that of each class it asks only how right its own pixels are: along the edges of many
    small objects the pixels that may be missed drown what is doubted of the objects themselves.
    """
    return own_iou(sums.right / sums.shown.clamp(min=1.0), shown, presence, rule)


def sure_precision(sums: ClassSums, shown: Tensor, presence: Tensor, rule: IouRule) -> Tensor:
    """How right (B,) from 0 to 1 the generator believes its labels, on average over classes, of own_sums,
    where a class that is shown counts as surely as it is there by the generator's own belief.

    The judge's `presence` tells of classes alone that are not shown: of rare ones it learns in which videos
    they are, and knows nothing of another video.
    """
    precision = sums.right / sums.shown.clamp(min=1.0)
    there = torch.where(shown > 0, precision, presence)
    return expected_iou(precision.square(), shown, there, rule)


def own_parts(sums: ClassSums, shown: Tensor, presence: Tensor, rule: IouRule) -> dict[str, Tensor]:
    """The parts (B,) of the score that are the generator's own belief, of own_sums; the rest as above."""
    parts = {
        "own_iou": own_iou(class_ious(sums), shown, presence, rule),
        "own_accuracy": own_accuracy(sums),
        "own_precision": own_precision(sums, shown, presence, rule),
        "sure_precision": sure_precision(sums, shown, presence, rule),
    }
    return {name: iou_logit(part) for name, part in parts.items()}


def agreement_sums(shown: Tensor, again: Tensor) -> ClassSums:
    """How a mask, one-hot `shown` (B, K, h, w), and labels `again` (B, h, w) of the same image go together:
    right are the pixels of each class in both, missed those of it in the second alone."""
    counts = torch.zeros(shown.shape[:2], device=shown.device)
    counts.scatter_add_(1, again.flatten(1), torch.ones_like(again.flatten(1), dtype=counts.dtype))
    right = _sum_over_pixels(shown, shown.gather(1, again[:, None]))
    return ClassSums(right, shown.sum(dim=(2, 3)), counts - right)


def agreement(sums: ClassSums) -> Tensor:
    """Mean IoU (B,) of two masks over the classes in either, of agreement_sums."""
    either = sums.shown + sums.missed > 0
    return (class_ious(sums) * either).sum(dim=1) / either.sum(dim=1)


def iou_logit(ious: Tensor) -> Tensor:
    """Logit of IoUs or of another share from 0 to 1, finite at both ends."""
    return torch.logit(ious, eps=SMALLEST_IOU)


def in_order(parts: Mapping[str, Tensor]) -> Tensor:
    """(B, P) float32 of all parts (B,) of the score by name, in the order of SCORE_PARTS."""
    return torch.stack([parts[name].float() for name in SCORE_PARTS], dim=1)


def routing_score(parts: Tensor, combination: Tensor) -> Tensor:
    """The score that routes: parts (B, P) under the monotone fit (1 + P,), a bias and weights >= 0; (B,)."""
    return combination[0] + parts @ combination[1:]
