"""The images of a split whose objects are measured: a few, because taking masks apart is dear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segpipe.datasets import Dataset, LabelledImage, Sample, Split, list_split
from segpipe.inspection.facts import SplitFacts, gather
from segpipe.inspection.looks import Looked
from segpipe.inspection.objects import ObjectSizes, object_diameters

OBJECT_IMAGES = 200
OBJECT_PIXELS = 25_000_000  # a larger mask takes gigabytes to take apart


@dataclass(frozen=True)
class ChosenImages:
    """At most 200 images of a split, evenly spread, by their keys."""

    keys: frozenset[str]
    n_classes: int

    def diameters(self, sample: Sample, labelled: LabelledImage) -> dict[int, np.ndarray] | None:
        """As object_diameters; None of an image that was not chosen, or of over 25 megapixels."""
        if sample.key not in self.keys or labelled.mask.size > OBJECT_PIXELS:
            return None
        return object_diameters(labelled.mask, self.n_classes)


def chosen_images(listed: Split, n_classes: int) -> ChosenImages:
    """Those of a split."""
    step = math.ceil(len(listed.samples) / OBJECT_IMAGES)
    return ChosenImages(frozenset(sample.key for sample in listed.samples[::step]), n_classes)


def look_at_objects(dataset: Dataset, split: str) -> tuple[SplitFacts, ObjectSizes]:
    """As look_through, and how large the objects of some of the images are."""
    listed, sizes = list_split(dataset, split), ObjectSizes()
    chosen = chosen_images(listed, len(dataset.classes))

    def keep(looked: Looked[dict[int, np.ndarray] | None]) -> None:
        if looked.look is not None and looked.extra is not None:
            sizes.add(looked.extra, (looked.look.height, looked.look.width))

    return gather(dataset, split, listed, chosen.diameters, keep), sizes
