"""Labelled images of which a random half is damaged, for benchmarks of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from segpipe.datasets import Dataset, Sample
from segpipe.evaluation.measure import Pair, read_in_batches

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def damaged_half(
    dataset: Dataset, samples: Sequence[Sample], batch_size: int, damage: Damage | None, seed: int
) -> Iterator[list[Pair]]:
    """The samples' images and truths in order, in batches; None damages nothing."""
    draws = np.random.default_rng(seed)
    half = set() if damage is None else set(draws.permutation(len(samples))[: len(samples) // 2].tolist())
    rows = iter(range(len(samples)))
    for pairs in read_in_batches(dataset, list(samples), batch_size):
        yield [
            (damage(image, draws) if damage and next(rows) in half else image, truth)
            for image, truth in pairs
        ]
