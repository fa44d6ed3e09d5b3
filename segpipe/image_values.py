"""The values that an image file stores, of any depth, and a range of them as 8 bits (contract C14).

Pillow keeps the upper 8 of 16 bits of colour; here the lower ones are read too, by a second decoding.
"""

from __future__ import annotations

import sys
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

from segpipe.errors import ImageError
from segpipe.image_headers import SEPARATE_PLANES, raw_mode
from segpipe.image_range import ImageRange

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_AT_ONCE = 1 << 20  # values, of 8 bytes each while they are scaled
_RGB = [0, 1, 2]
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Raw mode of 16 bits a channel, of which Pillow keeps the upper 8 -> raw mode and channels of the lower 8.
_LOWER_BITS = {
    f"{channels};16{order}": (f"{channels};16{other}", _RGB)
    for channels in ("RGB", "RGBA", "RGBX")
    for order, other in _OTHER_ORDER.items()
} | {"LA;16B": ("RGBA", [1, 1, 1])}


def pixels_in_range(image: Image.Image, image_range: ImageRange) -> np.ndarray:
    """An opened image as HxWx3 uint8, LOW and below 0, HIGH and above 255; loads it.

    Images of at most 8 bits a channel too, by their RGB values of 0 to 255. Raises ImageError, and whatever
    Pillow raises for a damaged file.
    """
    white_is_zero = _is_white_at_zero(image)
    scaled = to_8_bits(stored_values(image), image_range)
    return as_rgb(255 - scaled if white_is_zero else scaled)


def stored_values(image: Image.Image) -> np.ndarray:
    """An opened image's own values: HxW or HxWx3, of uint8 to int32 or float32; loads it. ImageError."""
    if _is_deep_colour(image):
        return _colour_of_16_bits(image)
    largest = _largest_value(image)
    if image.mode == "I" and isinstance(image, PpmImageFile):  # which Pillow stretches to 0..65535
        stretched = np.asarray(image).astype(np.uint32)
        return ((stretched * np.uint32(largest) + np.uint32(32767)) // np.uint32(65535)).astype(np.uint16)
    if image.mode == "I" and _is_unsigned(image):
        return np.asarray(image).view(np.uint32)
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)
    if image.mode not in EIGHT_BIT_MODES:
        raise ImageError("unsupported", f"pixel type {image.mode} is not read; save it as 8 or 16 bit")
    return np.asarray(image.convert("RGB"))


def to_8_bits(values: np.ndarray, image_range: ImageRange) -> np.ndarray:
    """clip((value - LOW) / (HIGH - LOW), 0, 1) * 255 as uint8, rounded; what is no number (NaN) is LOW."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        every_value = np.arange(1 << 8 * values.dtype.itemsize)
        return _scaled(every_value, image_range)[values]
    flat = np.ascontiguousarray(values).ravel()
    scaled = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scaled[part] = _scaled(flat[part], image_range)
    return scaled.reshape(values.shape)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """HxW grey, or HxWx3, to HxWx3."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def has_full_range(image: Image.Image) -> bool:
    """Whether an image's kind says what its brightest value is, as for 32 bits and floats none does."""
    return image.mode not in ("I", "F") or (isinstance(image, PpmImageFile) and image.mode == "I")


def _scaled(values: np.ndarray, image_range: ImageRange) -> np.ndarray:
    low, high = image_range
    share = np.nan_to_num((values.astype(np.float64) - low) / (high - low), nan=0.0)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def _colour_of_16_bits(image: Image.Image) -> np.ndarray:
    """HxWx3 uint16; alpha is dropped."""
    assert isinstance(image, ImageFile.ImageFile)  # else it would have no raw mode
    planes = image.tag_v2.get(PLANAR_CONFIGURATION) if isinstance(image, TiffImageFile) else None
    if raw_mode(image) not in _LOWER_BITS or planes == SEPARATE_PLANES:
        raise ImageError(
            "unsupported",
            "colours of more than 8 bits of this kind (their channels, or how they lie) are not read with a "
            "range of values; save it as 16-bit PNG",
        )
    lower_mode, channels = _LOWER_BITS[raw_mode(image)]
    again = _opened_again(image, lower_mode)
    values = np.asarray(image.convert("RGB")).astype(np.uint16)
    values <<= 8
    values |= np.asarray(again)[:, :, channels]
    return values


def _opened_again(image: ImageFile.ImageFile, wanted: str) -> ImageFile.ImageFile:
    """The file of an image that is not decoded yet, once more, to be decoded by another raw mode."""
    assert image.fp is not None  # it is not decoded yet
    at = image.fp.tell()
    image.fp.seek(0)
    again = type(image)(BytesIO(image.fp.read()))
    image.fp.seek(at)
    again.seek(image.tell())
    again.tile = [
        tile._replace(args=(wanted, *tile.args[1:]) if isinstance(tile.args, tuple) else wanted)
        for tile in again.tile
    ]
    return again


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is open and not decoded yet has more than 8 bits in each of several channels."""
    if image.mode.startswith("I") or image.mode == "F":
        return False
    if isinstance(image, TiffImageFile) and image.tile:
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8
    return _largest_value(image) > 255 or ";16" in raw_mode(image)


def _largest_value(image: Image.Image) -> int:
    """Of a PPM or PGM, as its header says if it is not decoded yet."""
    for tile in image.tile[:1] if isinstance(image, PpmImageFile) else []:  # none of one that is decoded
        if tile.codec_name in ("ppm", "ppm_plain") and isinstance(tile.args, tuple):
            return int(tile.args[-1])
    return 65535 if image.mode == "I" else 255


def _is_white_at_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF that Pillow leaves so: it turns those of 8 bits itself."""
    is_deep = image.mode.startswith("I") or image.mode == "F"
    return is_deep and isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _is_unsigned(image: Image.Image) -> bool:
    # Pillow reads 32 bits without a sign into integers that have one.
    return isinstance(image, TiffImageFile) and image.tag_v2.get(SAMPLEFORMAT, (1,))[0] == 1
