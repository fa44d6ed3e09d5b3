"""Label maps: files that give each class a colour."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np

from segpipe.errors import DatasetError
from segpipe.exchange.imports.colours import Colours, rgb
from segpipe.exchange.imports.source import Source
from segpipe.images import class_palette

Line = tuple[str, tuple[int, ...]]
CHANNELS = 3
SHOWN = 60  # characters of a line
LabelMap = tuple[tuple[str, ...], Colours]
_IGNORED = "what is ignored"
_VOID = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled"))


def labelmap_lines(text: str) -> Iterator[Line]:
    """PASCAL VOC's and CVAT's labelmap.txt: name:r,g,b:parts:actions, where all after the name may lack.

    ValueError for a line that seems to have a colour, and none of three numbers.
    """
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"(.+?)(?::(\d+),(\d+),(\d+))?(?::[^:]*:[^:]*)?$", line.rstrip())
        # A class's name may begin with # too: what makes a line one of a class is its colour then.
        if found and (found[2] or not line.startswith("#")):
            if not found[2] and re.search(r":[\d. ]*,[\d., ]*$", found[1]):
                raise _unreadable(number, line)
            yield found[1], tuple(int(value) for value in found.groups()[1:] if value)


def _spaced_lines(text: str) -> Iterator[Line]:
    """CamVid's label_colors.txt: r g b, blanks, the name. ValueError for another line that is no comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S.*?)\s*$", line):
            yield found[4], tuple(int(value) for value in found.groups()[:3])
        elif line.strip() and not line.lstrip().startswith("#"):
            raise _unreadable(number, line)


def _csv_lines(text: str) -> Iterator[Line]:
    """class_dict.csv: name,r,g,b, the first line a header or not. ValueError for another line."""
    lines = text.splitlines()
    for number, row in enumerate(csv.reader(lines, skipinitialspace=True), 1):
        name, *colour = (cell.strip() for cell in row) if row else ("",)
        if name and len(colour) == CHANNELS and all(re.fullmatch(r"\d+", value) for value in colour):
            yield name, tuple(map(int, colour))
        elif any(row) and (number > 1 or any(value.isdigit() for value in colour)):
            raise _unreadable(number, ",".join(row))


def _unreadable(number: int, line: str) -> ValueError:
    return ValueError(f"line {number}, {line.strip()[:SHOWN]!r}")


_READERS: tuple[tuple[str, Callable[[str], Iterator[Line]]], ...] = (
    ("labelmap.txt", labelmap_lines),
    ("label_colors.txt", _spaced_lines),
    ("class_dict.csv", _csv_lines),
)
NAMES = tuple(name for name, _ in _READERS)


def read_label_map(source: Source) -> LabelMap | None:
    """Classes and colours of the label map in the source's root; a class such as void is what is ignored.

    None when there is no such file. DatasetError when it gives no class, when it contradicts itself, or when
    there are two that do not say the same.
    """
    present = [(name, lines) for name, lines in _READERS if name in source.uris]
    found = [_without_void(*_checked(source, name, lines)) for name, lines in present]
    for classes, colours in found[1:]:
        _require_same(found[0], (classes, colours))
    return found[0] if found else None


def _checked(
    source: Source, name: str, lines: Callable[[str], Iterator[Line]]
) -> tuple[tuple[str, ...], np.ndarray, str]:
    place = source.place(name)
    return *checked_lines(lines(source.text(name)), place, _VOID), place


def checked_lines(
    lines: Iterable[Line], place: str, repeatable: Collection[str] = ()
) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and colours (Kx3 uint8) of a label map; what has no colour gets VOC's at its place.

    DatasetError when there is no class, a line or a colour is none, or two lines name one class or colour.
    repeatable: names, in lower case, that may have several lines.
    """
    try:
        found = list(lines)
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{place}: {error} gives no class and three whole numbers: correct it") from None
    if not 1 <= len(found) <= 256:
        raise DatasetError(f"{place} names {len(found)} classes, 1 to 256 can be read: one line for each")
    colours = class_palette(len(found))
    for number, (name, colour) in enumerate(found):
        if colour and max(colour) > 255:
            raise DatasetError(f"{place}: the colour of {name!r} is not of 0 to 255: correct it")
        colours[number] = colour or colours[number]
    names = tuple(name for name, _ in found)
    _refuse_repeated(names, colours, place, repeatable)
    return names, colours


def _refuse_repeated(
    names: tuple[str, ...], colours: np.ndarray, place: str, repeatable: Collection[str]
) -> None:
    once: dict[str, str] = {}
    owner: dict[str, str] = {}
    known_as = [_IGNORED if name.lower() in repeatable else name for name in names]
    for name, colour in zip(known_as, map(rgb, colours), strict=True):
        if name in once:
            raise DatasetError(
                f"{place} names the class {name!r} twice, with {once[name]} and {colour}: leave one line"
            )
        if name != _IGNORED:
            once[name] = colour
        if owner.setdefault(colour, name) != name:
            raise DatasetError(
                f"{place} gives {owner[colour]!r} and {name!r} the colour {colour}: change one"
            )


def _require_same(one: LabelMap, other: LabelMap) -> None:
    """Whether two files say the same of each class; their order may differ."""
    first, second = (
        dict(zip(classes, map(rgb, colours.classes), strict=True)) for classes, colours in (one, other)
    )
    if differing := [name for name in {**first, **second} if first.get(name) != second.get(name)]:
        name = differing[0]
        raise DatasetError(
            f"{one[1].told_by} and {other[1].told_by} disagree on the class {name!r} "
            f"({first.get(name, 'not there')}; {second.get(name, 'not there')}): remove one of the files"
        )


def _without_void(classes: tuple[str, ...], colours: np.ndarray, place: str) -> LabelMap:
    void = np.array([name.lower() in _VOID for name in classes])
    kept = tuple(name for name, is_void in zip(classes, void, strict=True) if not is_void)
    return kept, Colours(colours[~void], colours[void], place)
