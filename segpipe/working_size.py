"""The size at which networks see the images of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIZE_MULTIPLE = 32
LARGEST_WORKING_AREA = 256 * 352


def choose_working_size(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The working size (height, width) for images of these sizes: their upper-quartile area, at most 256x352
    pixels, in their median shape, as multiples of 32."""
    sizes = np.asarray(shapes, dtype=float)
    area = min(float(np.quantile(sizes.prod(axis=1), 0.75)), LARGEST_WORKING_AREA)
    ratio = float(np.median(sizes[:, 0] / sizes[:, 1]))
    height, width = np.sqrt(area * ratio), np.sqrt(area / ratio)
    rounded = [max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE) for side in (height, width)]
    return rounded[0], rounded[1]
