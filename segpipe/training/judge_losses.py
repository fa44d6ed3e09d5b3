"""The losses of stage 2: how wrong a judgement of shown masks is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.confidence.score import SMALLEST_IOU, expected_class_ious, expected_iou
from segpipe.metrics import FULL_SHARE, IouRule
from segpipe.models.judge import Judgement, ShownMask
from segpipe.models.masks import mask_channels

IOU_WEIGHT, IMAGE_WEIGHT, PRESENCE_WEIGHT, REALNESS_WEIGHT = 5.0, 0.2, 0.2, 0.2


@dataclass(frozen=True)
class Lesson:
    """A batch of B masks to judge, on the mask's grid.

    image (B,3,h,w) normalised; shown: the masks; labels (B,h,w) int64, the truth; real (B,) bool, whether the
    mask shown is the truth.
    """

    image: Tensor
    shown: ShownMask
    labels: Tensor
    real: Tensor


@dataclass(frozen=True)
class JudgingLosses:
    """correctness, presence, realness and image_iou are cross-entropies, expected_iou a squared error."""

    correctness: Tensor
    expected_iou: Tensor
    image_iou: Tensor
    presence: Tensor
    realness: Tensor

    @property
    def total(self) -> Tensor:
        return (
            self.correctness
            + IOU_WEIGHT * self.expected_iou
            + IMAGE_WEIGHT * self.image_iou
            + PRESENCE_WEIGHT * self.presence
            + REALNESS_WEIGHT * self.realness
        )


def true_iou(one_hot: Tensor, labels: Tensor, ignore_index: int, rule: IouRule) -> tuple[Tensor, Tensor]:
    """Mean IoU (B,) over the classes in mask or truth, and (B,) bool: whether any pixel is labelled.

    one_hot (B,K,h,w) is the mask, labels (B,h,w) the truth; rule: as in metrics.mean_class_iou.
    """
    known = (labels != ignore_index).unsqueeze(1)
    truth, mask = mask_channels(labels, one_hot.shape[1], ignore_index), one_hot * known
    both, shown, true = (maps.sum(dim=(2, 3)) for maps in (truth * mask, mask, truth))
    either, labelled = shown + true - both, known.sum(dim=(1, 2, 3))
    invented = (shown / labelled.clamp(min=1)[:, None] / FULL_SHARE).clamp(max=1.0)
    weights = (either > 0).float()
    if rule == "graded":
        weights = torch.where(true > 0, weights, invented)
    ious = (weights * both / either.clamp(min=1)).sum(dim=1) / weights.sum(dim=1).clamp(min=SMALLEST_IOU)
    return ious, labelled > 0


def judging_losses(
    judgement: Judgement, lesson: Lesson, ignore_index: int, truths: float, rule: IouRule
) -> JudgingLosses:
    """How wrong a judgement is; ignored pixels, and images of nothing else, say nothing.

    truths: the share of all lessons, above 0 and below 1, that show the truth.
    """
    shown, labels = lesson.shown, lesson.labels
    known = labels != ignore_index
    right = (shown.one_hot.argmax(dim=1) == labels).float()
    per_pixel = functional.binary_cross_entropy_with_logits(
        judgement.correctness[:, 0], right, reduction="none"
    )
    ious, measured = true_iou(shown.one_hot, labels, ignore_index, rule)
    believed = _expected_iou(judgement, shown, known, rule)
    image = functional.binary_cross_entropy_with_logits(judgement.image_iou, ious, reduction="none")
    present = mask_channels(labels, shown.one_hot.shape[1], ignore_index).amax(dim=(2, 3))
    presence = functional.binary_cross_entropy_with_logits(judgement.presence, present, reduction="none")
    return JudgingLosses(
        correctness=_mean(per_pixel, known),
        expected_iou=_mean((believed - ious).square(), measured),
        image_iou=_mean(image, measured),
        presence=_mean(presence.mean(dim=1), measured),
        realness=_realness_loss(judgement, lesson.real, measured, truths),
    )


def _expected_iou(judgement: Judgement, shown: ShownMask, known: Tensor, rule: IouRule) -> Tensor:
    """Of the labelled pixels, known (B,h,w), as the true IoU is."""
    counted = known.unsqueeze(1)
    one_hot = shown.one_hot * counted
    # A label that is certainly right misses no pixel of another class.
    correctness = judgement.correctness.sigmoid().where(counted, 1.0)
    class_ious = expected_class_ious(one_hot, shown.probabilities, correctness)
    shares = one_hot.sum(dim=(2, 3)) / counted.sum(dim=(2, 3)).clamp(min=1)
    return expected_iou(class_ious, shares, judgement.presence.sigmoid(), rule)


def _realness_loss(judgement: Judgement, real: Tensor, measured: Tensor, truths: float) -> Tensor:
    """Cross-entropy of true against not, both weighing half however rarely the truth is shown."""
    target = real.float().view(-1, 1, 1, 1).expand_as(judgement.realness)
    loss = functional.binary_cross_entropy_with_logits(judgement.realness, target, reduction="none")
    weight = torch.where(target > 0.5, 0.5 / truths, 0.5 / (1 - truths))
    return _mean((loss * weight).mean(dim=(1, 2, 3)), measured)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp(min=1)
