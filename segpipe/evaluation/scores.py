"""What the networks say of labelled images, and every score that could rank them, its rivals included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from segpipe.confidence import baselines
from segpipe.confidence.score import SCORE_PARTS
from segpipe.models.inference import (
    FinishedMask,
    Prediction,
    generate,
    judge_masks,
    prepare,
    raw_adversarial_score,
)
from segpipe.models.labeler import JudgedMask, Labeler, split_masks
from segpipe.models.masks import class_logits
from segpipe.models.tiled import ScaledImage
from segpipe.models.tiled_logits import whole_image

ROUTING_SCORE, ADVERSARIAL = "discriminator", "adversarial"


@dataclass(frozen=True)
class Scored:
    """Images as Labeler.finish takes them, and the scores of all (B,) by name."""

    judged: Sequence[JudgedMask | FinishedMask]
    scores: dict[str, Tensor]


def score_images(labeler: Labeler, images: Sequence[np.ndarray]) -> Scored:
    """Of images HxWx3 uint8: what labelling takes, a pass over the mirrored images, and in tiles one more."""
    if labeler.bundle.spec.scale is None:
        return _fitted(labeler, images)
    scored = [_in_tiles(labeler, image) for image in images]
    scores = {name: torch.cat([one.scores[name] for one in scored]) for name in scored[0].scores}
    return Scored([one.judged[0] for one in scored], scores)


def _fitted(labeler: Labeler, images: Sequence[np.ndarray]) -> Scored:
    bundle, device = labeler.bundle, labeler.device
    batch = prepare(bundle, images, device)
    generated, mirrored = (generate(bundle, seen, device) for seen in (batch, batch.flip(-1)))
    prediction = judge_masks(bundle, batch, generated, device)
    raw = raw_adversarial_score(bundle, batch, generated, device)
    return Scored(split_masks(prediction), _all_fitted(prediction, class_logits(mirrored), raw))


def _all_fitted(prediction: Prediction, mirrored: Tensor, raw: Tensor | None) -> dict[str, Tensor]:
    verdict = prediction.verdict
    return _scores(verdict.score, verdict.parts, raw) | _rivals(prediction.logits, mirrored)


def _in_tiles(labeler: Labeler, image: np.ndarray) -> Scored:
    bundle, device = labeler.bundle, labeler.device
    seen, mirrored = (
        cast(ScaledImage, labeler.prepare(np.ascontiguousarray(one))) for one in (image, image[:, ::-1])
    )
    (judged,) = cast(Sequence[FinishedMask], labeler.judge([seen]))
    whole, turned = (whole_image(bundle, one, device) for one in (seen, mirrored))
    own = _scores(judged.score[None], judged.parts[None], whole.raw_score)
    return Scored([judged], own | _rivals(whole.logits[None], turned.logits[None]))


def _scores(score: Tensor, parts: Tensor, raw: Tensor | None) -> dict[str, Tensor]:
    return {
        ROUTING_SCORE: score,
        **({} if raw is None else {ADVERSARIAL: raw}),
        **dict(zip(SCORE_PARTS, parts.unbind(dim=1), strict=True)),
    }


def _rivals(logits: Tensor, mirrored: Tensor) -> dict[str, Tensor]:
    probabilities = logits.softmax(dim=1)
    return {
        "max_softmax": baselines.max_softmax(probabilities),
        "entropy": baselines.entropy(probabilities),
        "soft_dice": baselines.soft_dice(probabilities),
        "soft_iou": baselines.soft_iou(probabilities),
        "flip_tta": baselines.flip_tta(probabilities, mirrored.softmax(dim=1)),
    }
