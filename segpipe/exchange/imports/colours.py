"""Masks by their colours: what an RGB mask or a palette says of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segpipe.datasets import IGNORED
from segpipe.errors import DatasetError, ImageError
from segpipe.exchange.imports.source import Source
from segpipe.images import MaskColours, decode_mask, decode_mask_colours


@dataclass(frozen=True)
class Colours:
    """Kx3 uint8, a class's colour each, no two alike, in the order of the classes; ignored: Nx3 uint8, those
    of pixels that have no class; told_by names the file, or the standard, that says so."""

    classes: np.ndarray
    ignored: np.ndarray
    told_by: str

    def meanings(self) -> dict[int, int]:
        """Colour as 0xRRGGBB -> class index, or the index to ignore."""
        ignored = dict.fromkeys(_codes(self.ignored).tolist(), IGNORED)
        return ignored | {code: number for number, code in enumerate(_codes(self.classes).tolist())}


def mapped_mask(source: Source, key: str, meaning: np.ndarray) -> np.ndarray:
    """The mask at a key with each value replaced by its meaning (256). DatasetError names the file."""
    try:
        return np.asarray(meaning[decode_mask(source.content(key))])
    except ImageError as error:
        raise _unusable(source, key, error) from error


def coloured_mask(source: Source, key: str, colours: Colours) -> np.ndarray:
    """The mask at a key as HxW class indices: by its colours, or by indices that no palette contradicts."""
    try:
        found = decode_mask_colours(source.content(key))
    except ImageError as error:
        raise _unusable(source, key, error) from error
    place = source.place(key)
    if found.values.ndim == 3:
        return _by_colour(found.values, colours, place)
    if found.palette is not None:
        return _by_palette(found, colours, place)
    return _by_grey(found.values, colours)


def mask_kind(source: Source, key: str) -> Literal["grey", "palette", "colours"]:
    """What tells a mask's classes. DatasetError names the file that is no mask."""
    try:
        found = decode_mask_colours(source.content(key))
    except ImageError as error:
        raise _unusable(source, key, error) from error
    if found.values.ndim == 3:
        return "colours"
    return "grey" if found.palette is None else "palette"


def _unusable(source: Source, key: str, error: ImageError) -> DatasetError:
    return DatasetError(f"{source.place(key)} cannot be used: {error}; replace or remove it")


def _by_colour(pixels: np.ndarray, colours: Colours, place: str) -> np.ndarray:
    meanings = colours.meanings()
    known = np.array(sorted(meanings), np.uint32)
    to_class = np.array([meanings[code] for code in sorted(meanings)], np.uint8)
    mask = np.empty(pixels.shape[:2], np.uint8)
    for number, codes in enumerate(map(_codes, pixels)):  # by rows, whose wider numbers take little memory
        at = np.searchsorted(known, codes).clip(max=len(known) - 1)
        unknown = codes[known[at] != codes]
        if unknown.size:
            raise DatasetError(
                f"{place} holds the colour {_rgb(int(unknown[0]))}, which {colours.told_by} does not name: "
                "add it there, or correct the mask"
            )
        mask[number] = to_class[at]
    return mask


def _by_grey(values: np.ndarray, colours: Colours) -> np.ndarray:
    """By the indices, unless the label map has levels of grey alone, such as 0 and 255, and all these.

    White would else be what is ignored.
    """
    named = np.concatenate([colours.classes, colours.ignored])
    if not (named == named[:, :1]).all():
        return values
    meaning = {code & 255: number for code, number in colours.meanings().items()}
    used = np.unique(values).tolist()
    if not set(used) <= meaning.keys():
        return values
    table = np.zeros(256, np.uint8)
    table[used] = [meaning[value] for value in used]
    return np.asarray(table[values])


def _by_palette(mask: MaskColours, colours: Colours, place: str) -> np.ndarray:
    """By the indices, unless the palette says that they mean something else.

    A palette that some program sorted anew has the right colours at other indices. A colour that stands at
    several indices, as in a palette filled up with black, says nothing.
    """
    assert mask.palette is not None
    used = [int(value) for value in np.unique(mask.values) if value != IGNORED]
    said = {
        index: meaning for index, meaning in _palette_meanings(mask.palette, colours).items() if index in used
    }
    if all(said.get(index, index) == index for index in used):
        return mask.values
    if len(said) < len(used):
        index = next(index for index in used if said.get(index, index) != index)
        raise DatasetError(
            f"{place}: its palette gives index {index} the colour that class {said[index]} has in "
            f"{colours.told_by}, and other indices unknown ones: save the mask with that palette, or as grey"
        )
    meaning = np.full(256, IGNORED, np.uint8)
    meaning[list(said)] = list(said.values())
    return np.asarray(meaning[mask.values])


def _palette_meanings(palette: np.ndarray, colours: Colours) -> dict[int, int]:
    """Index -> class, of the entries whose colour is a class's and stands once."""
    meanings = colours.meanings()
    codes, first, counts = np.unique(_codes(palette), return_index=True, return_counts=True)
    found = zip(codes.tolist(), first.tolist(), counts.tolist(), strict=True)
    return {index: meanings[code] for code, index, count in found if count == 1 and code in meanings}


def _codes(colours: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 as 0xRRGGBB."""
    wide = colours.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def rgb(colour: np.ndarray) -> str:
    """(3,) uint8 as label maps write it."""
    return ",".join(map(str, colour.tolist()))


def _rgb(code: int) -> str:
    return f"{code >> 16},{code >> 8 & 255},{code & 255}"
