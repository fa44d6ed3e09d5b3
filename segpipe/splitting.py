"""`segpipe split`: a labelled data set copied into train, val, calibration and test, by whole groups."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from segpipe import storage
from segpipe.config import GROUPS_FILE, SplitSettings
from segpipe.datasets import DESCRIPTION, Dataset, Sample, list_splits, open_dataset
from segpipe.errors import DatasetError, NotFoundError
from segpipe.groups import group_names, groups_uri, listed_groups, read_groups, write_groups
from segpipe.inspection.checks import require_usable, say
from segpipe.inspection.facts import SplitFacts, look_through
from segpipe.progress import track
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

THREADS = 8


@dataclass(frozen=True)
class SplitResult:
    """What there is now at the target: images and groups of each split."""

    target: str
    images: dict[str, int]
    groups: dict[str, int]
    warnings: tuple[str, ...]


def split_data(data: str, target: str, settings: SplitSettings) -> SplitResult:
    """Copy images and masks as they are; groups.csv and dataset.json come last.

    Groups that share an image, pixel by pixel, go together. Raises DatasetError (TARGET is not empty or lies
    in DATA, two images of one key, an image without a group, fewer groups than splits), StorageError.
    """
    dataset = open_dataset(data)
    root = _free_target(dataset, target)
    names = list(settings.split) or list_splits(dataset)
    facts = [look_through(dataset, name) for name in names]
    warnings = say([line for found in facts for line in require_usable(found, settings.allow)])
    samples = _samples_by_key(facts)
    groups = dict(zip(samples, _groups(dataset, list(samples), settings.by), strict=True))
    together = _together(groups, facts)
    sizes = Counter(together[group] for group in groups.values())
    placed = allocate(sizes, settings.shares(), settings.seed)
    splits = {key: placed[together[group]] for key, group in groups.items()}
    _copy_all(samples, splits, root)
    write_groups(replace(dataset, root=root), groups)
    storage.put(storage.join(root, DESCRIPTION), storage.read_bytes(storage.join(dataset.root, DESCRIPTION)))
    of_split = {name: {groups[key] for key in splits if splits[key] == name} for name in settings.shares()}
    images = Counter(splits.values())
    return SplitResult(
        redact(root),
        {name: images[name] for name in of_split},
        {name: len(found) for name, found in of_split.items()},
        warnings,
    )


def allocate(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each group of so many images: the same for one seed, each split near its share of images.

    The largest first, each to the split that lacks most; in random order among groups of one size. Raises
    DatasetError for fewer groups than splits.
    """
    if len(sizes) < len(shares):
        raise DatasetError(
            f"{len(sizes)} groups are too few for {len(shares)} splits: group by something finer, or leave "
            "splits out by a share of 0"
        )
    names = sorted(sizes)
    shuffled = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    lacking = {name: share * sum(sizes.values()) for name, share in shares.items()}
    empty, placed = set(shares), {}
    ordered = sorted(shuffled, key=lambda group: -sizes[group])
    for number, group in enumerate(ordered):
        # Every split gets a group, however large others are.
        open_to = empty if len(ordered) - number <= len(empty) else lacking.keys()
        split = max(sorted(open_to), key=lambda name: lacking[name])
        placed[group] = split
        lacking[split] -= sizes[group]
        empty.discard(split)
    return placed


def _free_target(dataset: Dataset, target: str) -> str:
    root = storage.normalise(target)
    if root == dataset.root or root.startswith(f"{dataset.root}/") or dataset.root.startswith(f"{root}/"):
        raise DatasetError(f"{redact(root)} and {redact(dataset.root)} overlap: give TARGET a folder apart")
    try:
        found = next(iter(storage.list_objects(root)), None)
    except NotFoundError:
        found = None
    if found is not None:
        raise DatasetError(_occupied(root, found.key))
    return root


def _occupied(root: str, key: str) -> str:
    if storage.exists(storage.join(root, DESCRIPTION)):
        return f"{redact(root)} is not empty, it holds {key}: give an empty TARGET"
    return (
        f"{redact(root)} is not empty, it holds {key} and no {DESCRIPTION}, as a split that did not end: "
        "remove the folder, or give an empty TARGET"
    )


def _samples_by_key(facts: Sequence[SplitFacts]) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for found in facts:
        for sample in found.usable:
            if sample.key in samples:
                raise DatasetError(
                    f"{sample.image_uri} and {samples[sample.key].image_uri} share the key {sample.key!r}: "
                    "rename one, or take only one of the splits by --split"
                )
            samples[sample.key] = sample
    return samples


def _groups(dataset: Dataset, keys: list[str], by: str) -> list[str]:
    if by != GROUPS_FILE:
        return group_names(keys, by)
    groups = read_groups(dataset)
    if groups is None:
        raise DatasetError(
            f"{groups_uri(dataset)} is missing: write it, with the columns key and group, or give --by a "
            "regular expression"
        )
    return listed_groups(dataset, keys, groups)


def _together(groups: Mapping[str, str], facts: Sequence[SplitFacts]) -> dict[str, str]:
    """Group -> a group that stands for it and all that share an image with it."""
    stands_for = {group: group for group in groups.values()}

    def root_of(group: str) -> str:
        while stands_for[group] != group:
            group = stands_for[group]
        return group

    for one, other in _same_images(facts):
        if one in groups and other in groups:
            pair = sorted((root_of(groups[one]), root_of(groups[other])))
            stands_for[pair[1]] = pair[0]
    found = {group: root_of(group) for group in stands_for}
    if joined := len(found) - len(set(found.values())):
        logger.warning("%d groups share images with others, pixel by pixel, and go with them", joined)
    return found


def _same_images(facts: Sequence[SplitFacts]) -> list[tuple[str, str]]:
    """Pairs of keys whose images are the same."""
    first_with: dict[str, str] = {}
    pairs = []
    for found in facts:
        pairs += [(copy.key, first.key) for copy, first in found.repeated]
        for digest, sample in found.digests.items():
            pairs.append((sample.key, first_with.setdefault(digest, sample.key)))
    return pairs


def _copy_all(samples: Mapping[str, Sample], splits: Mapping[str, str], root: str) -> None:
    def copy(sample: Sample) -> None:
        extension = sample.image_uri.rpartition(f"/{sample.key}")[2]
        folder = storage.join(root, splits[sample.key])
        for uri, name in (
            (sample.mask_uri, f"masks/{sample.key}.png"),
            (sample.image_uri, f"images/{sample.key}{extension}"),
        ):
            storage.put(storage.join(folder, name), storage.read_bytes(uri))

    with ThreadPoolExecutor(THREADS) as pool, track(len(samples), "copy") as progress:
        for _ in pool.map(copy, samples.values()):
            progress.advance()
