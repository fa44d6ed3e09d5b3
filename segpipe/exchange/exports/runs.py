"""Run lengths of a binary mask, as COCO and CVAT write them: alternating, the first one of what is false."""

from __future__ import annotations

import numpy as np


def column_runs(region: np.ndarray) -> list[int]:
    """Of HxW booleans, column after column (COCO's uncompressed counts)."""
    return _runs(region.ravel(order="F"))


def row_runs(region: np.ndarray) -> list[int]:
    """Of HxW booleans, row after row."""
    return _runs(region.ravel())


def _runs(values: np.ndarray) -> list[int]:
    changes = np.flatnonzero(np.diff(values)) + 1
    ends = np.concatenate([[0], changes, [len(values)]])
    lengths = np.diff(ends).tolist()
    return [0, *lengths] if values[0] else lengths
