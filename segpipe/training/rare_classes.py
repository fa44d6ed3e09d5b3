"""Which classes are rare and where the images show them: what training looks at more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A class is rare when it has less than this share of the pixels that an equal part would be.
RARE_SHARE = 0.2
# Places kept of each class of an image, and how many are tried at random before a class is searched for.
PLACES = 32
TRIED = 4096


@dataclass(frozen=True)
class Places:
    """Some pixels of each class of a mask: values (n,) uint8 and at (n,2) int32, rows and columns."""

    values: NDArray[np.uint8]
    at: NDArray[np.int32]


@dataclass(frozen=True)
class RareClasses:
    """The rare ones of K classes, and where N images show them.

    rates (K,): how often each is looked for where several are to be seen, 0 of one that is not rare. starts
    (N+1,): where the places of each image begin.
    """

    rates: NDArray[np.float64]
    starts: NDArray[np.int64]
    places: Places

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(N,) whether an image shows one."""
        return np.diff(self.starts) > 0

    def place(self, row: int, which: float, where: float) -> NDArray[np.int32]:
        """Row and column of a pixel of a rare class of an image that shows one; which, where: uniform draws
        from 0 up to 1, of the class and of the place."""
        start, end = self.starts[row], self.starts[row + 1]
        values = self.places.values[start:end]
        classes = np.unique(values)
        ends = self.rates[classes].cumsum()
        value = classes[min(int(np.searchsorted(ends, which * ends[-1], side="right")), len(classes) - 1)]
        found = start + np.flatnonzero(values == value)
        return self.places.at[found[int(where * len(found))]]


def sample_places(mask: NDArray[np.uint8], counts: NDArray[np.int64], draws: np.random.Generator) -> Places:
    """At most PLACES pixels, drawn uniformly, of each class of a mask HxW, which has counts (K,) of each."""
    flat = mask.ravel()
    tried = draws.integers(flat.size, size=TRIED)
    # All pixels of a common class would be many; the pixels tried are enough to find some.
    common = counts * TRIED >= 2 * PLACES * flat.size
    found = [
        _some(tried[flat[tried] == value] if common[value] else np.flatnonzero(flat == value), draws)
        for value in np.flatnonzero(counts)
    ]
    values = np.repeat(np.flatnonzero(counts), [len(where) for where in found]).astype(np.uint8)
    where = np.concatenate([*found, np.zeros(0, np.int64)])
    return Places(values, np.stack(np.divmod(where, mask.shape[1]), axis=1).astype(np.int32))


def _some(where: NDArray[np.int64], draws: np.random.Generator) -> NDArray[np.int64]:
    return where[draws.choice(len(where), min(PLACES, len(where)), replace=False)]


def rare_classes(counts: NDArray[np.int64], found: Sequence[Places]) -> RareClasses:
    """counts (K,): pixels of each class in all images; found: what `sample_places` gave of each image."""
    share = counts / max(int(counts.sum()), 1)
    is_rare = (share > 0) & (share < RARE_SHARE / len(counts))
    rates = np.where(is_rare, np.maximum(share, 1e-12) ** -0.5, 0.0)
    kept = [is_rare[places.values] for places in found]
    starts = np.concatenate([[0], np.cumsum([np.count_nonzero(keep) for keep in kept])]).astype(np.int64)
    values = [places.values[keep] for places, keep in zip(found, kept, strict=True)]
    at = [places.at[keep] for places, keep in zip(found, kept, strict=True)]
    return RareClasses(
        rates,
        starts,
        Places(
            np.concatenate([*values, np.zeros(0, np.uint8)]),
            np.concatenate([*at, np.zeros((0, 2), np.int32)]),
        ),
    )
