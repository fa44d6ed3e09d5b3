"""COCO: as published, as Roboflow and CVAT write it, and as segpipe exports it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from segpipe.errors import DatasetError
from segpipe.exchange.imports.coco_entries import CocoFile, labelled_images
from segpipe.exchange.imports.coco_files import annotation_files
from segpipe.exchange.imports.labelled import Found, LeftOut
from segpipe.exchange.imports.source import Source
from segpipe.validation import parse_json

BACKGROUND = "background"
_PARTS = ("images", "annotations", "categories")


def read(source: Source) -> Found:
    """Of two annotations over a pixel the later one counts.

    What no annotation covers is the category `background`, or class 0 of that name where there is none. One
    odd image or annotation is left out; a file is refused in which every annotation that draws something is.
    """
    if find_spec("pycocotools") is None:
        raise DatasetError("COCO's masks need pycocotools: pip install 'segpipe[coco]'")
    found = Found((), [], [], may_lack_images=True)
    for split, key in annotation_files(source):
        content = _content(source, key)
        if content is None:
            found.left_out.append(LeftOut(key, "", "", f"it lacks one of the lists {', '.join(_PARTS)}"))
        else:
            found = _with_file(found, source, CocoFile(split, key, content))
    return found


def _with_file(found: Found, source: Source, file: CocoFile) -> Found:
    categories = _categories(file, source)
    classes = _classes(categories)
    if found.classes and found.classes != classes:
        raise DatasetError(
            f"{source.place(file.key)} has other categories than the files before it: import them apart"
        )
    numbers = {category: classes.index(name) for category, name in categories}
    images, left_out = labelled_images(source, file, numbers, classes.index(BACKGROUND))
    return replace(
        found, classes=classes, images=[*found.images, *images], left_out=[*found.left_out, *left_out]
    )


def _content(source: Source, key: str) -> dict[str, list[Any]] | None:
    """The file's content; None where it is another kind of JSON."""
    try:
        content = parse_json(source.content(key))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source.place(key)} is not valid JSON ({error}): correct or remove it") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _PARTS):
        return None
    return content


def _categories(file: CocoFile, source: Source) -> list[tuple[int, str]]:
    """Id and name, by id. DatasetError for what is no category, and for what is there twice."""
    place = source.place(file.key)
    names: dict[int, str] = {}
    for one in file.content["categories"]:
        if not isinstance(one, dict) or type(one.get("id")) is not int or not _is_text(one.get("name")):
            raise DatasetError(f"{place}: a category lacks a whole number as id, or a name: correct it")
        if one["id"] in names:
            raise DatasetError(f"{place} has two categories of the id {one['id']}: correct one of them")
        if one["name"] in names.values():
            raise DatasetError(f"{place} has two categories of the name {one['name']!r}: rename one of them")
        names[one["id"]] = one["name"]
    return sorted(names.items())


def _classes(categories: list[tuple[int, str]]) -> tuple[str, ...]:
    names = tuple(name for _, name in categories)
    return names if BACKGROUND in names else (BACKGROUND, *names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
