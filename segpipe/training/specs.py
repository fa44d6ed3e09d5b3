"""The spec of a model of a data set, whoever made its generator."""

from __future__ import annotations

from typing import Literal

from segpipe.confidence.score import BELIEF
from segpipe.datasets import Dataset
from segpipe.metrics import IOU_RULE
from segpipe.models.bundle import ModelSpec, SecondLook
from segpipe.models.generators.foreign import ForeignSpec
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION
from segpipe.training.scale import Scale


def spec_of(
    dataset: Dataset,
    architecture: str,
    shown_masks: Literal["hard", "soft"] | None,
    size: tuple[int, int],
    scale: Scale,
    foreign: ForeignSpec | None,
    second_look: SecondLook | None,
) -> ModelSpec:
    """size: the working size; the rest as in ModelSpec."""
    return ModelSpec(
        architecture=architecture,
        classes=dataset.classes,
        ignore_index=dataset.ignore_index,
        working_size=size,
        mean=MEAN,
        standard_deviation=STANDARD_DEVIATION,
        shown_masks=shown_masks,
        foreign=foreign,
        scale=scale.scale,
        tile=scale.tile,
        margin=scale.margin,
        image_range=dataset.image_range,
        iou_rule=IOU_RULE,
        second_look=second_look,
        belief_kind=BELIEF,
    )
