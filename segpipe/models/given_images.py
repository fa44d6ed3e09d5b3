"""What a user of the library gives to be labelled, as arrays, or one clear line about what it is instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from segpipe.errors import ImageError
from segpipe.images import decode_pillow

_WANTED = "give HxWx3 uint8 (RGB) arrays or Pillow images"


def given_pixels(images: object) -> Iterator[np.ndarray]:
    """Each image as HxWx3 uint8 RGB, a Pillow image as displayed; taken one at a time. Raises ImageError."""
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise ImageError("unsupported", f"label takes a list of images, not {_kind(images)}: {_WANTED}")
    if isinstance(images, np.ndarray) and images.ndim < 4:
        raise ImageError("unsupported", f"label takes a list of images: give [image] for {_kind(images)}")
    return (_pixels(number, image) for number, image in enumerate(images))


def _pixels(number: int, image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        try:
            image = decode_pillow(image)
        except ImageError as error:
            raise ImageError(error.reason, f"image {number}: {error}") from error
    if not isinstance(image, np.ndarray):
        raise ImageError("unsupported", f"image {number} is {_kind(image)}: {_WANTED}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError("unsupported", f"image {number} is {_kind(image)}: give HxWx3 uint8 (RGB)")
    return image


def _kind(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} of shape {given.shape}"
    return f"of type {type(given).__name__}"
