"""The range of values that images of more than 8 bits use, for a data set that names none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from PIL import Image

from segpipe import storage
from segpipe.errors import ImageError, TooLargeError
from segpipe.image_range import ImageRange
from segpipe.image_values import has_full_range
from segpipe.images import MAX_BYTES, MAX_PIXELS, decode_stored, open_image

PERCENTILES = (0.1, 99.9)
VALUES = 1 << 16  # of an image, evenly spread


def suggested_range(dark: Iterable[str], unreadable: Iterable[str]) -> ImageRange | None:
    """LOW and HIGH by percentiles of the values of images at these URIs: whole numbers, or of four digits.

    dark: of more than 8 bits; unreadable: those count whose kind has no full range. None: nothing to go by,
    or all values are the same. Raises StorageError.
    """
    images = chain(_opened(dark), (image for image in _opened(unreadable) if not has_full_range(image)))
    found = [values for image in images if len(values := _some_values(image))]
    if not found:
        return None
    low, high = np.percentile(np.concatenate(found), PERCENTILES).tolist()
    if all(values.dtype.kind in "iu" for values in found):
        low, high = float(np.floor(low)), float(np.ceil(high))
    else:
        low, high = float(f"{low:.4g}"), float(f"{high:.4g}")
    return (low, high) if low < high else None


def _opened(uris: Iterable[str]) -> Iterator[Image.Image]:
    for uri in uris:
        try:
            yield open_image(storage.read(uri, MAX_BYTES).data, MAX_PIXELS)
        except (ImageError, TooLargeError):
            continue  # what cannot be read is said elsewhere


def _some_values(image: Image.Image) -> np.ndarray:
    """Evenly spread finite values; none of a damaged image."""
    try:
        values = decode_stored(image).ravel()
    except ImageError:
        return np.zeros(0, np.uint8)
    some = values[:: max(1, len(values) // VALUES)]
    return some[np.isfinite(some)]
