"""The classes that a mask shows, and where."""

from __future__ import annotations

import numpy as np

from segpipe.datasets import IGNORED
from segpipe.exchange.exports.items import Item


def classes_in(item: Item) -> list[int]:
    """Class indices, ascending."""
    return [int(value) for value in np.unique(item.mask) if value != IGNORED]


def box_of(region: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width, height of what is true."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1
