"""Images that look the same although their pixels differ: scaled, re-encoded, or the next frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from segpipe.datasets import Sample

DISTANCE = 3  # of 64 bits; re-encoding and scaling change 0 to 2 of them
CHUNKS = 4  # two hashes that differ in 3 bits agree in one of 4 chunks
NEIGHBOURS = 32
SHOWN = 12
_CHUNK_BITS = 16
_ENOUGH = 256  # pixels a side, of which 32 are looked at


@dataclass(frozen=True)
class Fingerprint:
    """What an image is compared by: the digest of its pixels, and its perceptual hash."""

    split: str
    sample: Sample
    digest: str
    looks_like: int


@dataclass(frozen=True)
class NearImages:
    """Images that look like another and are not the same, pixel by pixel. within: how many, by split; apart:
    those of them that look like one of another group; n_across: how many that look like one of another split;
    pairs and across: some of each."""

    within: dict[str, int]
    apart: dict[str, int]
    n_across: int
    pairs: tuple[tuple[Fingerprint, Fingerprint], ...]
    across: tuple[tuple[Fingerprint, Fingerprint], ...]


def perceptual_hash(pixels: np.ndarray) -> int:
    """64 bits of an image HxWx3 uint8 by its coarse structure (pHash), as a whole number."""
    image = Image.fromarray(pixels)
    smaller = image.reduce(max(1, min(image.size) // _ENOUGH))
    return int(str(imagehash.phash(smaller)), 16)


def near_sets(hashes: np.ndarray) -> np.ndarray:
    """(n,) uint64 perceptual hashes to (n,) numbers of the set that each image belongs to.

    Two images are of one set when their hashes differ in at most 3 bits, or when such steps lead from one to
    the other. Not quadratic: hashes are sorted by each of their four chunks and compared with the 32 that
    follow under the same chunk, so of thousands of images that look alike some may be missed.
    """
    distinct, place = np.unique(hashes, return_inverse=True)
    edges = [np.zeros((2, 0), np.int64)]
    for chunk in range(CHUNKS):
        part = (distinct >> np.uint64(_CHUNK_BITS * chunk)) & np.uint64((1 << _CHUNK_BITS) - 1)
        order = np.lexsort((distinct, part))
        for step in range(1, min(NEIGHBOURS, len(distinct) - 1) + 1):
            left, right = order[:-step], order[step:]
            differing = np.bitwise_count(distinct[left] ^ distinct[right])
            near = (part[left] == part[right]) & (differing <= DISTANCE)
            edges.append(np.stack([left[near], right[near]]))
    rows, columns = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(distinct), len(distinct)))
    return np.asarray(connected_components(graph, directed=False)[1][place])


def near_images(fingerprints: Sequence[Fingerprint], groups: Mapping[str, str] | None = None) -> NearImages:
    """Which images look like others; copies of one image count as that image.

    `groups` (key -> group): an image without one is a group of its own.
    """
    within: Counter[str] = Counter()
    apart: Counter[str] = Counter()
    n_across, pairs, across = 0, [], []
    for members in _sets_of_different(fingerprints):
        splits = Counter(one.split for one in members)
        several = {split: count for split, count in splits.items() if count > 1}
        within.update(several)
        apart.update({split: several[split] for split in several if _in_groups(members, split, groups) > 1})
        if len(splits) > 1:
            n_across += len(members)
            across.append((members[0], next(one for one in members if one.split != members[0].split)))
        else:
            pairs.append((members[0], members[1]))
    return NearImages(dict(within), dict(apart), n_across, tuple(pairs[:SHOWN]), tuple(across[:SHOWN]))


def _in_groups(members: Sequence[Fingerprint], split: str, groups: Mapping[str, str] | None) -> int:
    """Of how many groups the members of a split are."""
    keys = [one.sample.key for one in members if one.split == split]
    return len({(groups or {}).get(key, key) for key in keys})


def _sets_of_different(fingerprints: Sequence[Fingerprint]) -> Iterator[list[Fingerprint]]:
    """Each set of images that look alike, of which at least two differ; one of each digest and split."""
    labels = near_sets(np.array([one.looks_like for one in fingerprints], np.uint64))
    order = np.argsort(labels, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(rows) > 1:
            found = {(one.digest, one.split): one for row in rows if (one := fingerprints[row])}
            if len({digest for digest, _ in found}) > 1:
                yield list(found.values())
