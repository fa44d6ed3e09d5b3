"""`segpipe inspect`: what is odd about a labelled data set, before anyone trains on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from segpipe.confidence.guarantee import fewest_accepted
from segpipe.config import MOST_COST
from segpipe.datasets import Dataset, LabelledImage, Sample, Split, list_split, list_splits, open_dataset
from segpipe.errors import DatasetError
from segpipe.groups import groups_uri, read_groups
from segpipe.image_range import ImageRange
from segpipe.inspection.checks import copies, shared, unlabelled, unreadable, warnings_of
from segpipe.inspection.facts import SplitFacts, gather
from segpipe.inspection.key_groups import KeyGroups, suggested_groups
from segpipe.inspection.looks import Looked
from segpipe.inspection.near import Fingerprint, NearImages, near_images, perceptual_hash
from segpipe.inspection.object_sample import chosen_images
from segpipe.inspection.objects import ObjectSizes
from segpipe.inspection.scale import ChosenScale, Grid, choose_scale, lost_lines, scale_line
from segpipe.redaction import redact
from segpipe.working_size import choose_working_size

TARGETS = ((0.05, 0.95), (0.05, 0.9), (0.1, 0.95), (0.1, 0.9))
Extra = tuple[int, dict[int, np.ndarray] | None]


@dataclass(frozen=True)
class ClassFacts:
    """A class in a split. share: of the labelled pixels; whole_images: in which no other class is labelled;
    objects: in the sample; smallest_object: diameter in pixels (ObjectSizes.smallest), and what the working
    size leaves of it."""

    pixels: int
    share: float
    images: int
    whole_images: int
    objects: int
    smallest_object: float | None
    at_working_size: float | None


@dataclass(frozen=True)
class SplitInspection:
    """A split. Sizes are HEIGHTxWIDTH, as --image-size takes them; scale: what --scale auto would choose and
    why; darkest and brightest value: after the data set's range, if it names one; suggested_range: for one
    that names none and needs one; copies and near_copies: images that are in the split once more;
    objects_looked_at: images whose objects were measured."""

    images: int
    unusable: int
    without_labels: int
    smallest_image: str
    largest_image: str
    sizes: int
    working_size: str
    scale: str
    darkest_value: int
    brightest_value: int
    nearly_black: int
    suggested_range: ImageRange | None
    turned_by_exif: int
    turns_no_size_betrays: int
    palettes_against_indices: int
    copies: int
    near_copies: int
    ignored_share: float
    objects_looked_at: int
    left_aside: dict[str, int]
    classes: dict[str, ClassFacts]


@dataclass(frozen=True)
class Promise:
    """At most max_bad_fraction of the accepted masks bad, with `confidence`: the fewest accepted ones that
    carry it, all flawless, and which splits have so many images (or groups, by groups.csv)."""

    max_bad_fraction: float
    confidence: float
    flawless: int
    enough: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What was found. refused: what train, evaluate or calibrate would not take; warnings: what they would
    say, and more; a line each. suggested_groups: by the keys, where there is no groups.csv."""

    data: str
    image_range: ImageRange | None
    splits: dict[str, SplitInspection]
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    suggested_groups: tuple[KeyGroups, ...]
    promises: tuple[Promise, ...]


@dataclass(frozen=True)
class Inspected:
    """The inspection, and the samples behind it for a page with pictures."""

    dataset: Dataset
    result: Inspection
    facts: dict[str, SplitFacts]
    near: NearImages


@dataclass(frozen=True)
class _Gathered:
    facts: SplitFacts
    objects: ObjectSizes
    fingerprints: list[Fingerprint]


def inspect_data(data: str, split: str | None) -> Inspected:
    """Look at a data set, or at one split of it.

    Raises DatasetError (no data set, no such split), StorageError. Every image is read once;
    the sizes of objects are those of at most 200 images of a split, none of over 25 megapixels.
    """
    dataset = open_dataset(data)
    names = list_splits(dataset) if split is None else [split]
    if not names:
        raise DatasetError(f"{dataset.root} has no split: put images at {dataset.root}/train/images")
    groups = read_groups(dataset)
    gathered: dict[str, _Gathered] = {}
    refused: list[str] = []
    for name in names:
        try:
            listed = list_split(dataset, name)
        except DatasetError as error:
            if split is not None:
                raise
            refused.append(str(error))
        else:
            gathered[name] = _gather(dataset, name, listed)
    return _inspected(dataset, gathered, refused, groups)


def _gather(dataset: Dataset, name: str, listed: Split) -> _Gathered:
    chosen = chosen_images(listed, len(dataset.classes))
    objects = ObjectSizes()
    fingerprints: list[Fingerprint] = []

    def measure(sample: Sample, labelled: LabelledImage) -> Extra:
        return perceptual_hash(labelled.image.pixels), chosen.diameters(sample, labelled)

    def keep(looked: Looked[Extra]) -> None:
        if looked.look is None or looked.extra is None:
            return
        looks_like, diameters = looked.extra
        fingerprints.append(Fingerprint(name, looked.sample, looked.look.digest, looks_like))
        if diameters is not None:
            objects.add(diameters, (looked.look.height, looked.look.width))

    return _Gathered(gather(dataset, name, listed, measure, keep), objects, fingerprints)


def _inspected(
    dataset: Dataset, gathered: dict[str, _Gathered], refused: list[str], groups: dict[str, str] | None
) -> Inspected:
    facts = {name: found.facts for name, found in gathered.items()}
    near = near_images([one for found in gathered.values() for one in found.fingerprints], groups)
    keys = {name: [one.sample.key for one in found.fingerprints] for name, found in gathered.items()}
    warnings = [line for found in gathered.values() for line in _split_warnings(found)]
    result = Inspection(
        data=redact(dataset.root),
        image_range=dataset.image_range,
        splits={name: _split_inspection(found, near) for name, found in gathered.items()},
        refused=(*refused, *_refused(facts, groups)),
        warnings=(*warnings, *_near_warnings(near), *_group_warnings(dataset, keys, groups)),
        suggested_groups=suggested_groups(keys) if groups is None else (),
        promises=tuple(_promises(facts, groups)),
    )
    return Inspected(dataset, result, facts, near)


def _refused(facts: Mapping[str, SplitFacts], groups: Mapping[str, str] | None) -> Iterator[str]:
    for one in facts.values():
        if line := unreadable(one):
            yield line
        if line := unlabelled(one):
            yield line
        if line := copies(one, groups):
            yield f"as a calibration split: {line}"
    for one, other in combinations(facts.values(), 2):
        if line := shared(one, other):
            yield line


def _split_warnings(found: _Gathered) -> Iterator[str]:
    facts = found.facts
    yield from warnings_of(facts)
    yield from lost_lines(_scale(found), f"split {facts.split}")


def _near_warnings(near: NearImages) -> Iterator[str]:
    for one, other in near.across[:1]:
        yield (
            f"{near.n_across} images look nearly the same as one of another split: {one.sample.image_uri} "
            f"and {other.sample.image_uri}, for example: keep what belongs together in one split"
        )
    for name, count in near.apart.items():
        yield (
            f"{count} images of split {name} look nearly the same as another of it: if they are frames of "
            "videos, name the videos in groups.csv or by --group-by, else a promise counts too much evidence"
        )


def _group_warnings(
    dataset: Dataset, keys: Mapping[str, list[str]], groups: dict[str, str] | None
) -> Iterator[str]:
    if groups is None:
        return
    place = groups_uri(dataset)
    images = {key for of_split in keys.values() for key in of_split}
    if missing := sorted(images - groups.keys()):
        yield f"{place} has no line for {len(missing)} images, {missing[0]} for example: calibrate refuses it"
    if unknown := sorted(groups.keys() - images):
        yield f"{place} names {len(unknown)} images that were not seen, {unknown[0]} for example"
    for (one, first), (other, second) in combinations(keys.items(), 2):
        both = {groups.get(key) for key in first} & {groups.get(key) for key in second} - {None}
        if both:
            shown = f"{len(both)} groups, {min(map(str, both))} for example"
            yield f"splits {one} and {other} both have images of {shown}"


def _promises(facts: Mapping[str, SplitFacts], groups: dict[str, str] | None) -> Iterator[Promise]:
    independent = {name: _independent(found, groups) for name, found in facts.items()}
    for share, confidence in TARGETS:
        flawless = fewest_accepted(0, share, confidence)
        enough = tuple(name for name, count in independent.items() if count >= flawless)
        yield Promise(share, confidence, flawless, enough)


def _independent(facts: SplitFacts, groups: dict[str, str] | None) -> int:
    """Images, or groups of them, that count as evidence of their own."""
    if groups is not None:
        return len({groups.get(sample.key, sample.key) for sample in facts.usable})
    return len(facts.usable) - len(facts.repeated) - facts.unlabelled.count


def _split_inspection(found: _Gathered, near: NearImages) -> SplitInspection:
    facts = found.facts
    by_area = sorted(facts.shapes, key=lambda shape: (shape[0] * shape[1], shape)) or [(0, 0)]
    return SplitInspection(
        images=facts.n_images,
        unusable=facts.unreadable.count,
        without_labels=facts.unlabelled.count,
        smallest_image=_by(by_area[0]),
        largest_image=_by(by_area[-1]),
        sizes=len(set(facts.shapes)),
        working_size=_by(_working_size(facts)),
        scale=scale_line(_scale(found), Grid(_working_size(facts))),
        darkest_value=min(facts.brightness),
        brightest_value=max(facts.brightness) if facts.shapes else 0,
        nearly_black=facts.nearly_black.count,
        suggested_range=facts.suggested_range,
        turned_by_exif=facts.turned.count,
        turns_no_size_betrays=facts.maybe_turned.count,
        palettes_against_indices=facts.contradicted.count,
        copies=len(facts.repeated),
        near_copies=near.within.get(facts.split, 0),
        ignored_share=facts.ignored_share,
        objects_looked_at=found.objects.images,
        left_aside=facts.left_aside,
        classes=_classes(found),
    )


def _classes(found: _Gathered) -> dict[str, ClassFacts]:
    facts, size = found.facts, _working_size(found.facts)
    return {
        name: ClassFacts(
            int(facts.pixels[number]),
            int(facts.pixels[number]) / max(facts.labelled_pixels, 1),
            int(facts.images[number]),
            int(facts.whole[number]),
            found.objects.count(number),
            *found.objects.smallest(number, size),
        )
        for number, name in enumerate(facts.dataset.classes)
    }


def _working_size(facts: SplitFacts) -> tuple[int, int]:
    """(height, width) that training on this split would choose."""
    return choose_working_size(facts.some_shapes() or [(1, 1)])


def _scale(found: _Gathered) -> ChosenScale:
    """What training on this split would choose."""
    facts = found.facts
    return choose_scale(
        found.objects,
        facts.dataset.classes,
        facts.some_shapes() or [(1, 1)],
        Grid(_working_size(facts)),
        MOST_COST,
    )


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
