"""From a judgement to the numbers that route and are shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.confidence.score import (
    adversarial_score,
    agreement,
    agreement_sums,
    expected_class_ious,
    expected_iou,
    in_order,
    iou_logit,
    own_parts,
    own_sums,
    routing_score,
)
from segpipe.models.bundle import ModelSpec
from segpipe.models.judge import Judge, Judgement, ShownMask


@dataclass(frozen=True)
class Verdict:
    """On B masks of K classes. parts (B,P): what the score is made of, in the order of SCORE_PARTS.

    score (B,): routes; a logit of the expected IoU. class_confidences (B,K): expected IoU of each class in
    the mask, NaN for the others. correctness (B,1,h,w): 0 to 1, the probability that the label
    shown is right.
    """

    parts: Tensor
    score: Tensor
    class_confidences: Tensor
    correctness: Tensor


def give_verdict(
    judge: Judge, judgement: Judgement, shown: ShownMask, again: Tensor, spec: ModelSpec
) -> Verdict:
    """One verdict per image; again: labels (B,h,w) of the images seen again."""
    correctness = judgement.correctness.sigmoid()
    shares = shown.one_hot.mean(dim=(2, 3))
    by_class = expected_class_ious(shown.one_hot, shown.probabilities, correctness)
    presence, rule = judgement.presence.sigmoid(), spec.rule
    parts = in_order(
        {
            "expected_iou": iou_logit(expected_iou(by_class, shares, presence, rule)),
            "correctness": judgement.correctness.mean(dim=(1, 2, 3)),
            "realness": adversarial_score(judgement.realness),
            "image_iou": judgement.image_iou,
            "familiarity": judgement.familiarity,
            "agreement": iou_logit(agreement(agreement_sums(shown.one_hot, again))),
            **own_parts(own_sums(shown.one_hot, shown.probabilities, spec.belief), shares, presence, rule),
        }
    )
    return Verdict(
        parts=parts,
        score=routing_score(parts, judge.combination),
        class_confidences=by_class.where(shares > 0, torch.nan),
        correctness=correctness,
    )
