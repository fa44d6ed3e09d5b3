"""One image with its mask, checked, turned as displayed and written as training reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segpipe import storage
from segpipe.concurrency import Budget
from segpipe.datasets import IGNORED
from segpipe.errors import DatasetError, ImageError
from segpipe.exchange.files import COPIED, COPIED_IN_RANGE
from segpipe.exchange.imports.labelled import SourceImage
from segpipe.image_range import ImageRange
from segpipe.images import (
    MAX_PIXELS,
    TURNED_BY_90,
    DecodedImage,
    class_palette,
    decode_opened,
    encode_image,
    encode_mask,
    open_image,
    turned,
)
from segpipe.redaction import redact


@dataclass(frozen=True)
class Place:
    """Where images go and what their masks mean. drawn_on: what masks lie on where sizes cannot tell.
    image_range: as in the data set that is made."""

    root: str
    classes: tuple[str, ...]
    drawn_on: Literal["displayed", "stored"]
    image_range: ImageRange | None = None

    @property
    def copied(self) -> dict[str, str]:
        """Format -> extension of the images whose files are copied."""
        return COPIED if self.image_range is None else COPIED_IN_RANGE


@dataclass(frozen=True)
class Copied:
    """An image that was copied; assumed: whether what its mask was drawn on was an assumption;
    nearly_black: as in images.DecodedImage."""

    uri: str
    split: str
    assumed: bool
    nearly_black: bool


def copy(image: SourceImage, place: Place, budget: Budget) -> Copied:
    """Write an image and its mask; budget is of the pixels of all images in work.

    Raises DatasetError when either cannot be used or they do not fit, NotFoundError, StorageError.
    """
    content = storage.read_bytes(image.uri)
    try:
        opened = open_image(content, MAX_PIXELS)
        with budget.held(opened.width * opened.height):
            decoded = decode_opened(opened, None, place.image_range)
            mask, assumed = _placed(image, decoded, place.drawn_on)
            _require_known(mask, image, place.classes)
            kept = place.copied.get(opened.format or "")
            file = (content, kept) if kept else (encode_image(decoded.pixels), ".png")
            _write(image, place, file, mask)
    except ImageError as error:
        place_of_image = redact(image.uri)
        raise DatasetError(f"{place_of_image} cannot be used: {error}; replace or remove it") from error
    return Copied(image.uri, image.split, assumed, decoded.nearly_black)


def _placed(image: SourceImage, decoded: DecodedImage, drawn_on: str) -> tuple[np.ndarray, bool]:
    """The mask as its image is displayed, and whether sizes could not tell how it was drawn."""
    displayed, orientation = decoded.pixels.shape[:2], decoded.orientation
    stored = displayed[::-1] if orientation in TURNED_BY_90 else displayed
    _require_size(image, image.size, displayed, stored)
    mask = image.mask()
    _require_size(image, mask.shape, displayed, stored)
    if orientation == 1:
        return mask, False
    assumed = displayed == stored
    on_stored = drawn_on == "stored" if assumed else mask.shape == stored
    return (turned(mask, orientation) if on_stored else mask), assumed


def _require_size(
    image: SourceImage, size: tuple[int, ...] | None, displayed: tuple[int, int], stored: tuple[int, int]
) -> None:
    if size in (None, displayed, stored):
        return
    assert size is not None
    turn = f" (stored as {stored[::-1]} and turned by EXIF)" if stored != displayed else ""
    raise DatasetError(
        f"{redact(image.uri)} is {displayed[::-1]}{turn}, its mask {size[::-1]} "
        f"({image.described_in}): correct one of them"
    )


def _require_known(mask: np.ndarray, image: SourceImage, classes: tuple[str, ...]) -> None:
    wrong = mask[(mask >= len(classes)) & (mask != IGNORED)]
    if wrong.size:
        raise DatasetError(
            f"the mask of {redact(image.uri)} ({image.described_in}) holds {wrong.max()}, and there "
            f"are {len(classes)} classes: correct the mask or the classes"
        )


def _write(image: SourceImage, place: Place, file: tuple[bytes, str], mask: np.ndarray) -> None:
    folder, (content, extension) = storage.join(place.root, image.split), file
    palette = class_palette(len(place.classes))
    storage.put(storage.join(folder, f"images/{image.key}{extension}"), content)
    storage.put(storage.join(folder, f"masks/{image.key}.png"), encode_mask(mask, palette))
