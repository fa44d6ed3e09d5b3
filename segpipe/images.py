"""Bytes to RGB array, safely; masks to and from indexed PNG; overlays."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from segpipe.errors import ImageError
from segpipe.image_headers import has_16_bits, open_header
from segpipe.image_range import ImageRange
from segpipe.image_values import EIGHT_BIT_MODES, as_rgb, pixels_in_range, stored_values

MAX_PIXELS = 100_000_000
MAX_BYTES = 500_000_000

_INDEX_MODES = ("1", "L", "P", "I;16")
_PNG_DEPTH_BYTE = 24  # of IHDR, which PNG puts first
TURNED_BY_90 = (5, 6, 7, 8)  # EXIF orientations whose height is the stored width
_EIGHTH = 256 // 8
_GREY_STEP = {2: 85, 4: 17}  # Pillow stretches 2- and 4-bit grey to 0..255


@dataclass(frozen=True)
class DecodedImage:
    """HxWx3 uint8 RGB, perhaps scaled down, with the height and width the image itself is displayed at.

    orientation: the EXIF one (1 to 8) by which stored pixels became displayed ones. nearly_black: the file
    has more than 8 bits a channel and uses less than an eighth of their range, as 12 bits stored in 16 do;
    never where a range of values was given.
    """

    pixels: np.ndarray
    height: int
    width: int
    orientation: int
    nearly_black: bool


@dataclass(frozen=True)
class MaskColours:
    """A mask file: HxW uint8 indices and its palette (Kx3 uint8; None for grey), or HxWx3 uint8 colours."""

    values: np.ndarray
    palette: np.ndarray | None


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, image_range: ImageRange | None = None
) -> np.ndarray:
    """JPEG, PNG, WebP, TIFF, BMP, GIF or PPM bytes to HxWx3 uint8 RGB, turned as displayed (EXIF).

    `image_range`: the values, as stored, that become 0 and 255; None: the full range of the file's kind.
    ImageError: unreadable (damaged, no image), unsupported (frames, pixel type), too_large (`max_pixels`).
    """
    return decode_scaled(data, max_pixels, None, image_range).pixels


def decode_scaled(
    data: bytes, max_pixels: int, smallest: tuple[int, int] | None, image_range: ImageRange | None = None
) -> DecodedImage:
    """As `decode_image`, but a JPEG may come at 1/2, 1/4 or 1/8, averaged: never below `smallest` (h, w).

    `smallest` is as displayed: the size the pixels are resized to next, or twice that to be within a grey
    level of resizing the full decode. None decodes at full size.
    """
    return decode_opened(open_image(data, max_pixels), smallest, image_range)


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The image with its header read and what it asks for bounded; no pixel is decoded. ImageError."""
    with _image_errors():
        return open_header(data, max_pixels)


def decode_opened(
    image: Image.Image, smallest: tuple[int, int] | None, image_range: ImageRange | None
) -> DecodedImage:
    """As `decode_scaled`, of what `open_image` gave; once."""
    with _image_errors():
        width, height = image.size
        # Of JPEG alone: asking a PNG for its orientation would load it, and swallow that it is damaged.
        if smallest is not None and isinstance(image, JpegImageFile) and _keeps_averages(image_range):
            image.draft(None, smallest if _orientation(image) in TURNED_BY_90 else smallest[::-1])
        deep = has_16_bits(image)  # asked before the decoding, and so is what Pillow does to a TIFF itself
        turned_by_pillow = _orientation(image) if isinstance(image, TiffImageFile) else 1
        rgb = _rgb(image) if image_range is None else pixels_in_range(image, image_range)
        orientation = _orientation(image)  # 1 for a TIFF now
        pixels = np.ascontiguousarray(turned(rgb, orientation))
    seen = (width, height) if orientation in TURNED_BY_90 else (height, width)
    nearly_black = deep and image_range is None and int(rgb.max()) < _EIGHTH
    return DecodedImage(pixels, *seen, max(orientation, turned_by_pillow), nearly_black)


def decode_stored(image: Image.Image) -> np.ndarray:
    """The values that an image stores, HxW or HxWx3 uint8 to int32 or float32; once. ImageError."""
    with _image_errors():
        return stored_values(image)


def decode_pillow(image: Image.Image, image_range: ImageRange | None) -> np.ndarray:
    """A Pillow image to HxWx3 uint8 RGB, as `decode_image` makes it of its file. ImageError."""
    return decode_opened(image, None, image_range).pixels


def encode_image(pixels: np.ndarray) -> bytes:
    """HxWx3 uint8 RGB to a PNG, without loss."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray, palette: np.ndarray) -> bytes:
    """HxW uint8 class indices to an indexed PNG; `palette` is Kx3 uint8. ImageError on other masks."""
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
        raise ImageError("unsupported", f"a mask is HxW uint8, got {mask.dtype} {mask.shape}")
    # Every index needs an entry: Pillow packs a short palette in fewer bits and would cut the index.
    colours = np.zeros((max(len(palette), int(mask.max()) + 1), 3), np.uint8)
    colours[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(colours.tobytes())
    buffer = BytesIO()
    # By runs alone: of masks it makes smaller files in less time than looking for other repetitions.
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def encode_confidence_map(confidence: np.ndarray, height: int, width: int) -> bytes:
    """A coarse map (a, b) from 0 (surely wrong) to 1 (surely right) to an 8-bit grey PNG of height x width.

    0 to 255, bilinear between the map's cells; NaN (nothing is known) is 0. ImageError on other shapes.
    """
    if confidence.ndim != 2 or confidence.size == 0:
        raise ImageError("unsupported", f"a confidence map has height and width, got {confidence.shape}")
    coarse = Image.fromarray((255 * np.nan_to_num(confidence, nan=0.0).clip(0, 1)).astype(np.float32))
    full = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    buffer = BytesIO()
    Image.fromarray(np.rint(full).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pixel_digest(pixels: np.ndarray) -> str:
    """SHA-256 (hex) of an image HxWx3 uint8: the same for any lossless copy of it."""
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)  # as it lies in memory: a copy could be 300 MB
    return digest.hexdigest()


def is_plain(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether other programs show these bytes as they are stored; image is what `open_image` gave of them.

    Not so when an EXIF orientation turns it, or when long texts keep Pillow from a PNG.
    """
    try:
        type(image)(BytesIO(data))
    except Exception:  # decoders of odd files raise nearly every type there is
        return False
    return _orientation(image) == 1


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Indexed or grey PNG to HxW uint8 class indices. ImageError as `decode_image`, and for colour masks."""
    with _image_errors():
        image = _open_mask(data, max_pixels)
        if image.mode not in _INDEX_MODES:
            raise ImageError(
                "unsupported", f"masks must be one channel of class indices, this one is {image.mode}"
            )
        return _indices(image, data)


def decode_mask_colours(data: bytes, max_pixels: int = MAX_PIXELS) -> MaskColours:
    """A PNG mask with what it says of colours. ImageError as `decode_image`, and for other kinds of masks."""
    with _image_errors():
        image = _open_mask(data, max_pixels)
        if image.mode in ("RGB", "RGBA"):
            return MaskColours(np.asarray(image.convert("RGB")), None)
        if image.mode not in _INDEX_MODES:
            raise ImageError(
                "unsupported", f"a mask holds class indices or colours, this one is {image.mode}"
            )
        palette = image.getpalette("RGB") if image.mode == "P" else None
        colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
        return MaskColours(_indices(image, data), colours)


def class_palette(n_classes: int) -> np.ndarray:
    """Kx3 uint8 colours, distinct for up to 256 classes: the PASCAL VOC colour map (class 0 is black)."""
    if not 1 <= n_classes <= 256:
        raise ImageError("unsupported", f"a mask holds 1 to 256 classes, not {n_classes}")
    index = np.arange(n_classes)
    channels = [sum(((index >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(8)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def hex_colour(colour: Iterable[int]) -> str:
    """RGB, each 0 to 255, as CSS and CVAT write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Mask colours over an HxWx3 uint8 image, HxWx3 uint8; `opacity` 0 to 1.

    Indices beyond the palette, as the ignore index, leave the image bare. ImageError when the sizes differ.
    """
    if image.shape[:2] != mask.shape:
        raise ImageError("unsupported", f"image {image.shape[:2]} and mask {mask.shape} differ in size")
    known = mask < len(palette)
    blended = image.copy()
    blended[known] = np.rint((1 - opacity) * image[known] + opacity * palette[mask[known]])
    return blended


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (HxW or HxWx3) as displayed, by an EXIF orientation 1 to 8 (Exif 2.32, tag 0x0112)."""
    swapped = np.swapaxes(pixels, 0, 1) if orientation in TURNED_BY_90 else pixels
    upside_down = orientation in (3, 4, 7, 8)
    mirrored = orientation in (2, 3, 6, 7)
    return swapped[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


@contextmanager
def _image_errors() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError("too_large", f"needs too much memory ({error}); make it smaller") from error
    except Exception as error:  # decoders of damaged files raise nearly every type there is
        raise ImageError("unreadable", f"damaged or cut off ({type(error).__name__}: {error})") from error


def _open_mask(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    image = open_header(data, max_pixels)
    if not isinstance(image, PngImageFile):
        raise ImageError("unsupported", "a mask must be a PNG: other formats change class indices")
    return image


def _indices(image: ImageFile.ImageFile, data: bytes) -> np.ndarray:
    """HxW uint8 of a PNG of one channel; ImageError for values above 255."""
    indices = np.asarray(image)
    if indices.max() > 255:
        raise ImageError("unsupported", f"a mask holds class indices 0 to 255, this one has {indices.max()}")
    step = _GREY_STEP.get(data[_PNG_DEPTH_BYTE], 1) if image.mode == "L" else 1
    return indices.astype(np.uint8) // np.uint8(step)


def _keeps_averages(image_range: ImageRange | None) -> bool:
    """Whether 8-bit pixels may be averaged before they are brought to the range: it cuts none of them off."""
    return image_range is None or (image_range[0] <= 0 and image_range[1] >= 255)


def _rgb(image: Image.Image) -> np.ndarray:
    if _is_grey16(image):
        return _grey16_to_rgb(image)
    if image.mode not in EIGHT_BIT_MODES:
        raise ImageError("unsupported", _no_range(image.mode))
    # Alpha is dropped: the camera's colours are below it, while compositing would invent a background.
    return np.asarray(image.convert("RGB"))


def _no_range(mode: str) -> str:
    return (
        f"pixel type {mode} has no known value range; give the data set the range of its values "
        '(dataset.json, "image": {"range": [LOW, HIGH]}) and train with it, or save it as 8 bit'
    )


def _is_grey16(image: Image.Image) -> bool:
    # Pillow reads a 16-bit PGM as 32-bit integers, stretched to 0..65535.
    return image.mode.startswith("I;16") or (image.mode == "I" and isinstance(image, PpmImageFile))


def _grey16_to_rgb(image: Image.Image) -> np.ndarray:
    """0..65535 (12-bit TIFF: 0..4095) to 0..255 by the full range, rounded: HxWx3 uint8."""
    values, full = np.asarray(image).astype(np.uint32), 65535
    if isinstance(image, TiffImageFile):
        full = (1 << image.tag_v2[BITSPERSAMPLE][0]) - 1
        if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow leaves as it is
            values = full - values
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    return as_rgb(grey)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in range(1, 9) else 1
    except Exception:  # damaged EXIF is ignored by every viewer, and the picture is whole
        return 1
