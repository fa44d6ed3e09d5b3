"""Label maps: files that give each class a colour."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from segpipe.errors import DatasetError
from segpipe.exchange.imports.colours import Colours
from segpipe.exchange.imports.source import Source
from segpipe.images import class_palette

Line = tuple[str, tuple[int, ...]]
_VOID = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled"))


def labelmap_lines(text: str) -> Iterator[Line]:
    """PASCAL VOC's and CVAT's labelmap.txt: name:r,g,b:parts:actions, where all after the name may lack."""
    for line in text.splitlines():
        found = re.match(r"(.+?)(?::(\d+),(\d+),(\d+))?(?::[^:]*:[^:]*)?$", line.rstrip())
        # A class's name may begin with # too: what makes a line one of a class is its colour then.
        if found and (found[2] or not line.startswith("#")):
            yield found[1], tuple(int(value) for value in found.groups()[1:] if value)


def _spaced_lines(text: str) -> Iterator[Line]:
    """CamVid's label_colors.txt: r g b, blanks, the name."""
    for line in text.splitlines():
        if found := re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S.*?)\s*$", line):
            yield found[4], tuple(int(value) for value in found.groups()[:3])


def _csv_lines(text: str) -> Iterator[Line]:
    """class_dict.csv: name,r,g,b under a header."""
    for line in text.splitlines():
        if found := re.match(r"\s*\"?([^,\"]+?)\"?\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*$", line):
            yield found[1], tuple(int(value) for value in found.groups()[1:])


_READERS: tuple[tuple[str, Callable[[str], Iterator[Line]]], ...] = (
    ("labelmap.txt", labelmap_lines),
    ("label_colors.txt", _spaced_lines),
    ("class_dict.csv", _csv_lines),
)
NAMES = tuple(name for name, _ in _READERS)


def read_label_map(source: Source) -> tuple[tuple[str, ...], Colours] | None:
    """Classes and colours of the label map in the source's root; a class such as void is what is ignored.

    None when there is no such file, DatasetError when it gives no class.
    """
    for name, lines in _READERS:
        if name in source.uris:
            place = source.place(name)
            return _without_void(*checked_lines(lines(source.text(name)), place), place)
    return None


def checked_lines(lines: Iterable[Line], place: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and colours (Kx3 uint8) of a label map; what has no colour gets VOC's at its place.

    DatasetError when there is no class or a colour is none.
    """
    found = list(lines)
    if not 1 <= len(found) <= 256:
        raise DatasetError(f"{place} names {len(found)} classes, 1 to 256 can be read: one line for each")
    colours = class_palette(len(found))
    for number, (name, colour) in enumerate(found):
        if colour and max(colour) > 255:
            raise DatasetError(f"{place}: the colour of {name!r} is not of 0 to 255: correct it")
        colours[number] = colour or colours[number]
    return tuple(name for name, _ in found), colours


def _without_void(
    classes: tuple[str, ...], colours: np.ndarray, place: str
) -> tuple[tuple[str, ...], Colours]:
    void = np.array([name.lower() in _VOID for name in classes])
    kept = tuple(name for name, is_void in zip(classes, void, strict=True) if not is_void)
    return kept, Colours(colours[~void], colours[void], place)
