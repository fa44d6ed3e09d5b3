"""What the looks at a split's samples come to: sums and a few examples, however many images there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from segpipe.datasets import Dataset, LabelledImage, Sample, Split, list_split
from segpipe.image_range import ImageRange
from segpipe.images import TURNED_BY_90, class_palette
from segpipe.inspection.looks import Colour, Look, Looked, as_tuple, look_at, nothing_more
from segpipe.inspection.suggested_range import suggested_range

EXAMPLES = 20
SIZES_LOOKED_AT = 64
Extra = TypeVar("Extra")


@dataclass
class Found:
    """How many images something is true of, and the first of them, with a word on each."""

    count: int = 0
    examples: list[tuple[Sample, str]] = field(default_factory=list)

    def add(self, sample: Sample, word: str = "") -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((sample, word))


@dataclass
class SplitFacts:
    """A split's images, looked at.

    pixels, images, whole: (256,) of usable ones: pixels with each mask value; images that show it; images
    in which no other class is labelled. values: (256,) whether any mask at all holds it. digests: pixel
    digest -> the first sample with it. repeated: samples with the pixels of an earlier one, and that one.
    first_colours: where each colour of a palette was first used: (value, key). suggested_range: of the values
    of images of more than 8 bits that need one, where the data set names none.
    """

    dataset: Dataset
    split: str
    usable: list[Sample] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    left_aside: dict[str, int] = field(default_factory=dict)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    whole: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.zeros(256, bool))
    digests: dict[str, Sample] = field(default_factory=dict)
    brightness: tuple[int, int] = (255, 0)
    unreadable: Found = field(default_factory=Found)
    unlabelled: Found = field(default_factory=Found)
    repeated: list[tuple[Sample, Sample]] = field(default_factory=list)
    turned: Found = field(default_factory=Found)
    maybe_turned: Found = field(default_factory=Found)
    nearly_black: Found = field(default_factory=Found)
    contradicted: Found = field(default_factory=Found)
    first_colours: dict[Colour, tuple[int, str]] = field(default_factory=dict)
    suggested_range: ImageRange | None = None

    @property
    def n_images(self) -> int:
        """All images of the split, unreadable ones included."""
        return len(self.usable) + self.unreadable.count

    @property
    def labelled_pixels(self) -> int:
        """Pixels of any class."""
        return int(self.pixels[: len(self.dataset.classes)].sum())

    @property
    def ignored_share(self) -> float:
        """Share (0 to 1) of the pixels that are the ignore index; 0 where there is no pixel."""
        return float(self.pixels[self.dataset.ignore_index] / max(int(self.pixels.sum()), 1))

    def some_shapes(self) -> list[tuple[int, int]]:
        """(height, width) of at most so many images as the working size is chosen by, evenly spread."""
        return self.shapes[:: math.ceil(len(self.shapes) / SIZES_LOOKED_AT) or 1]

    def add(self, looked: Looked[Any]) -> None:
        """Count one sample."""
        sample, look = looked.sample, looked.look
        if looked.problem is not None:
            self.unreadable.add(sample, looked.problem)
        else:
            self.usable.append(sample)
        if look is not None:
            self.values[[value for value, _ in look.values]] = True
            self._add_image(look, sample)
            self._add_colours(look, sample)
        if look is not None and looked.problem is None:
            self._add_mask(look, sample)

    def _add_mask(self, look: Look, sample: Sample) -> None:
        for value, count in look.values:
            self.pixels[value] += count
            self.images[value] += 1
        labelled = [value for value, _ in look.values if value != self.dataset.ignore_index]
        if len(labelled) == 1:
            self.whole[labelled[0]] += 1
        elif not labelled:
            self.unlabelled.add(sample)

    def _add_image(self, look: Look, sample: Sample) -> None:
        self.shapes.append((look.height, look.width))
        self.brightness = (
            min(self.brightness[0], look.brightness[0]),
            max(self.brightness[1], look.brightness[1]),
        )
        if look.nearly_black:
            self.nearly_black.add(sample)
        if look.orientation != 1:
            self.turned.add(sample, f"EXIF orientation {look.orientation}")
            # After a quarter turn of an oblong picture a mask of the stored pixels has another size.
            if look.orientation not in TURNED_BY_90 or look.height == look.width:
                self.maybe_turned.add(sample, f"EXIF orientation {look.orientation}")
        if (first := self.digests.setdefault(look.digest, sample)) is not sample:
            self.repeated.append((sample, first))

    def _add_colours(self, look: Look, sample: Sample) -> None:
        n_classes = len(self.dataset.classes)
        colours = [(value, colour) for value, colour in look.colours if value < n_classes]
        if word := voc_contradiction(colours, n_classes):
            self.contradicted.add(sample, word)
            return
        for value, colour in colours:
            first, key = self.first_colours.setdefault(colour, (value, sample.key))
            if first != value and any(colour):  # unused entries are black in many palettes
                self.contradicted.add(
                    sample, f"the colour of index {value} is that of index {first} in {key}"
                )
                return


def voc_contradiction(colours: Sequence[tuple[int, Colour]], n_classes: int) -> str | None:
    """What is odd where all colours of classes are PASCAL VOC's, but at other indices; None: nothing."""
    known = {as_tuple(colour): index for index, colour in enumerate(class_palette(n_classes))}
    if not all(colour in known for _, colour in colours):
        return None
    for value, colour in colours:
        if known[colour] != value:
            return f"index {value} has the colour that PASCAL VOC gives index {known[colour]}"
    return None


def look_through(dataset: Dataset, split: str) -> SplitFacts:
    """Look at every image of a split. DatasetError (no such split, images without masks), StorageError."""
    return gather(dataset, split, list_split(dataset, split), nothing_more, lambda _looked: None)


def gather(
    dataset: Dataset,
    split: str,
    listed: Split,
    also: Callable[[Sample, LabelledImage], Extra],
    keep: Callable[[Looked[Extra]], None],
) -> SplitFacts:
    """As `look_through`, measuring `also` of each image and handing what was seen to `keep`, in order."""
    facts = SplitFacts(dataset, split, left_aside=dict(sorted(listed.left_aside.items())))
    for looked in look_at(dataset, listed.samples, also, f"look at {split}"):
        facts.add(looked)
        keep(looked)
    if dataset.image_range is None:
        found = (facts.nearly_black, facts.unreadable)
        facts.suggested_range = suggested_range(
            *([sample.image_uri for sample, _ in kind.examples] for kind in found)
        )
    return facts


def shared_images(one: SplitFacts, other: SplitFacts) -> list[tuple[Sample, Sample]]:
    """Pairs of samples with the same pixels, in two splits, sorted by key."""
    both = one.digests.keys() & other.digests.keys()
    return sorted(
        ((one.digests[digest], other.digests[digest]) for digest in both), key=lambda pair: pair[0].key
    )
