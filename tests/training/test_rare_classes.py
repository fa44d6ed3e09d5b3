"""Which classes are rare, and that their places are where the masks show them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from segpipe.inspection.looks import value_counts
from segpipe.training.rare_classes import PLACES, Places, rare_classes, sample_places


def test_of_each_class_some_pixels_are_kept_that_the_mask_shows_there() -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[100:200, 50:60] = 1  # 0.8% of the pixels
    mask[7, 9] = 2
    mask[250:] = 255
    counts = value_counts(mask)
    assert counts.tolist() == [*[100_000 - 1001, 1000, 1], *[0] * 252, 20_000]
    found = sample_places(mask, counts[:3], np.random.default_rng(0))
    assert Counter(found.values.tolist()) == {0: PLACES, 1: PLACES, 2: 1}
    assert np.array_equal(mask[tuple(found.at.T)], found.values)
    assert found.at[found.values == 2].tolist() == [[7, 9]]
    rows, columns = found.at[found.values == 1].T
    assert rows.max() - rows.min() > 50
    assert set(columns.tolist()) <= set(range(50, 60))


def test_of_a_mask_without_a_class_there_is_no_place() -> None:
    found = sample_places(np.full((4, 4), 255, np.uint8), np.zeros(3, np.int64), np.random.default_rng(0))
    assert found.values.shape == (0,)
    assert found.at.shape == (0, 2)


def places(*values: int) -> Places:
    return Places(
        np.array(values, np.uint8),
        np.array([[value, 10 + n] for n, value in enumerate(values)], np.int32).reshape(-1, 2),
    )


def test_a_class_is_rare_below_a_fifth_of_an_equal_part_of_the_pixels() -> None:
    # An equal part of four classes is 25%: 5% is not rare, 4% is; the fourth is nowhere to be seen.
    rare = rare_classes(np.array([910, 50, 40, 0]), [places(0, 1), places(0, 2, 2), places()])
    assert rare.rates.tolist() == pytest.approx([0, 0, 5, 0])
    assert rare.seen.tolist() == [False, True, False]
    assert rare.place(1, 0.0, 0.0).tolist() == [2, 11]
    assert rare.place(1, 0.999, 0.999).tolist() == [2, 12]


def test_where_several_are_seen_the_rarer_is_looked_for_more_often() -> None:
    # 1% and 0.25%: as 10 to 20.
    rare = rare_classes(np.array([98750, 1000, 250]), [places(0, 0, 1, 1, 1, 2)])
    drawn = [int(rare.place(0, which, 0.5)[0]) for which in np.linspace(0, 0.9999, 300)]
    assert Counter(drawn) == {1: 100, 2: 200}


def test_where_all_classes_are_common_none_is_rare() -> None:
    rare = rare_classes(np.array([50, 50]), [places(0, 1)])
    assert not rare.seen.any()
