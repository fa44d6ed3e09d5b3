"""What a user of the library gives to be labelled, as arrays, or one clear line about what it is instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from segpipe.errors import ImageError
from segpipe.image_range import ImageRange
from segpipe.image_values import as_rgb, to_8_bits
from segpipe.images import decode_pillow

_WANTED = "give HxWx3 uint8 (RGB) arrays or Pillow images"
_WANTED_IN_RANGE = "give HxWx3 uint8 or uint16 (RGB), or HxW uint16 (grey)"


def given_pixels(images: object, image_range: ImageRange | None) -> Iterator[np.ndarray]:
    """Each image as HxWx3 uint8 RGB, brought to the range if there is one; a Pillow image as displayed.

    Taken one at a time. Raises ImageError.
    """
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise ImageError("unsupported", f"label takes a list of images, not {_kind(images)}: {_WANTED}")
    if isinstance(images, np.ndarray) and images.ndim < 4:
        raise ImageError("unsupported", f"label takes a list of images: give [image] for {_kind(images)}")
    return (_pixels(number, image, image_range) for number, image in enumerate(images))


def _pixels(number: int, image: Any, image_range: ImageRange | None) -> np.ndarray:
    if isinstance(image, Image.Image):
        return _whole_pixels(number, _decoded(number, image, image_range))
    if not isinstance(image, np.ndarray):
        raise ImageError("unsupported", f"image {number} is {_kind(image)}: {_WANTED}")
    if image_range is None:
        return _whole_pixels(number, image)
    if not (_is_colour(image, np.uint8) or _is_colour(image, np.uint16) or _is_grey(image)):
        raise ImageError("unsupported", f"image {number} is {_kind(image)}: {_WANTED_IN_RANGE}")
    return as_rgb(to_8_bits(image, image_range))


def _decoded(number: int, image: Image.Image, image_range: ImageRange | None) -> np.ndarray:
    try:
        return decode_pillow(image, image_range)
    except ImageError as error:
        raise ImageError(error.reason, f"image {number}: {error}") from error


def _whole_pixels(number: int, image: np.ndarray) -> np.ndarray:
    if _is_colour(image, np.uint8):
        return image
    if image.dtype == np.uint16:
        raise ImageError(
            "unsupported",
            f"image {number} is {_kind(image)}, and the model knows no range of such values (image.range of "
            "the data set that it learns from): give HxWx3 uint8 (RGB), or train with a range",
        )
    raise ImageError("unsupported", f"image {number} is {_kind(image)}: give HxWx3 uint8 (RGB)")


def _is_colour(image: np.ndarray, dtype: type[np.unsignedinteger[Any]]) -> bool:
    return image.dtype == dtype and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def _is_grey(image: np.ndarray) -> bool:
    return image.dtype == np.uint16 and image.ndim == 2 and image.size > 0


def _kind(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} of shape {given.shape}"
    return f"of type {type(given).__name__}"
