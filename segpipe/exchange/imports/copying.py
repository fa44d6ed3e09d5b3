"""One image with its mask, checked, turned as displayed and written as training reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segpipe import storage
from segpipe.concurrency import Budget
from segpipe.errors import DatasetError, ImageError
from segpipe.exchange.imports.labelled import IGNORED, LabelledImage
from segpipe.exchange.png import png
from segpipe.images import MAX_PIXELS, class_palette, decode_with_orientation, encode_mask, open_image, turned
from segpipe.redaction import redact

# Of these the file itself is copied, of other formats its pixels.
_KEPT = {"JPEG": ".jpg", "PNG": ".png"}


@dataclass(frozen=True)
class Place:
    """Where images go and what their masks mean. drawn_on: what masks lie on where sizes cannot tell."""

    root: str
    classes: tuple[str, ...]
    drawn_on: Literal["displayed", "stored"]


@dataclass(frozen=True)
class Copied:
    """An image that was copied; assumed: whether what its mask was drawn on was an assumption."""

    split: str
    assumed: bool


def copy(image: LabelledImage, place: Place, budget: Budget) -> Copied:
    """Write an image and its mask; budget is of the pixels of all images in work.

    Raises DatasetError when either cannot be used or they do not fit, NotFoundError, StorageError.
    """
    content = storage.read_bytes(image.uri)
    try:
        opened = open_image(content, MAX_PIXELS)
        with budget.held(opened.width * opened.height):
            pixels, orientation = decode_with_orientation(content)
            mask, assumed = _placed(image, pixels.shape[:2], orientation, place.drawn_on)
            _require_known(mask, image, place.classes)
            extension = _KEPT.get(opened.format or "")
            _write(image, place, (content, extension) if extension else (png(pixels), ".png"), mask)
    except ImageError as error:
        place_of_image = redact(image.uri)
        raise DatasetError(f"{place_of_image} cannot be used: {error}; replace or remove it") from error
    return Copied(image.split, assumed)


def _placed(
    image: LabelledImage, displayed: tuple[int, int], orientation: int, drawn_on: str
) -> tuple[np.ndarray, bool]:
    """The mask as its image is displayed, and whether sizes could not tell how it was drawn."""
    stored = displayed[::-1] if orientation > 4 else displayed  # those turn by 90 degrees
    _require_size(image, image.size, displayed, stored)
    mask = image.mask()
    _require_size(image, mask.shape, displayed, stored)
    if orientation == 1:
        return mask, False
    assumed = displayed == stored
    on_stored = drawn_on == "stored" if assumed else mask.shape == stored
    return (turned(mask, orientation) if on_stored else mask), assumed


def _require_size(
    image: LabelledImage, size: tuple[int, ...] | None, displayed: tuple[int, int], stored: tuple[int, int]
) -> None:
    if size in (None, displayed, stored):
        return
    assert size is not None
    turn = f" (stored as {stored[::-1]} and turned by EXIF)" if stored != displayed else ""
    raise DatasetError(
        f"{redact(image.uri)} is {displayed[::-1]}{turn}, its mask {size[::-1]} "
        f"({image.described_in}): correct one of them"
    )


def _require_known(mask: np.ndarray, image: LabelledImage, classes: tuple[str, ...]) -> None:
    wrong = mask[(mask >= len(classes)) & (mask != IGNORED)]
    if wrong.size:
        raise DatasetError(
            f"the mask of {redact(image.uri)} ({image.described_in}) holds {wrong.max()}, and there "
            f"are {len(classes)} classes: correct the mask or the classes"
        )


def _write(image: LabelledImage, place: Place, file: tuple[bytes, str], mask: np.ndarray) -> None:
    folder, (content, extension) = storage.join(place.root, image.split), file
    palette = class_palette(len(place.classes))
    storage.put(storage.join(folder, f"images/{image.key}{extension}"), content)
    storage.put(storage.join(folder, f"masks/{image.key}.png"), encode_mask(mask, palette))
