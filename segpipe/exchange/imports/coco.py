"""COCO: as published, as Roboflow and CVAT write it, and as segpipe exports it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from segpipe.errors import DatasetError
from segpipe.exchange.imports.coco_files import annotation_files, image_key
from segpipe.exchange.imports.coco_shapes import OddShapeError, Polygons, Runs, checked_shape, drawn
from segpipe.exchange.imports.labelled import Found, LabelledImage, LeftOut
from segpipe.exchange.imports.source import Source
from segpipe.images import MAX_PIXELS

BACKGROUND = "background"
_PARTS = ("images", "annotations", "categories")
_SHOWN = 60  # characters
_SHOWN_ODD = 3


@dataclass
class _Image:
    """An entry that can be used; drawn: class index and shape of each annotation, in their order."""

    key: str
    uri: str
    name: str
    height: int
    width: int
    drawn: list[tuple[int, Polygons | Runs]] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """An annotation file's content, with how messages name it."""

    split: str
    key: str
    content: dict[str, list[Any]]


def read(source: Source) -> Found:
    """Of two annotations over a pixel the later one counts.

    What no annotation covers is the category `background`, or class 0 of that name where there is none. One
    odd image or annotation is left out; a file is refused in which every annotation that draws something is.
    """
    if find_spec("pycocotools") is None:
        raise DatasetError("COCO's masks need pycocotools: pip install 'segpipe[coco]'")
    left_out: list[LeftOut] = []
    images: list[LabelledImage] = []
    classes: tuple[str, ...] = ()
    for split, key in annotation_files(source):
        content = _content(source, key)
        if content is None:
            left_out.append(LeftOut(key, "", "", f"it lacks one of the lists {', '.join(_PARTS)}"))
            continue
        file = _File(split, key, content)
        categories = _categories(file, source)
        found = _classes(categories)
        if classes and found != classes:
            raise DatasetError(
                f"{source.place(key)} has other categories than the files before it: import them apart"
            )
        classes = found
        images += _labelled_images(source, file, categories, classes, left_out)
    return Found(classes, images, left_out, may_lack_images=True)


def _content(source: Source, key: str) -> dict[str, list[Any]] | None:
    """The file's content; None where it is another kind of JSON."""
    try:
        content = json.loads(source.content(key))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source.place(key)} is not valid JSON ({error}): correct or remove it") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _PARTS):
        return None
    return content


def _categories(file: _File, source: Source) -> list[tuple[int, str]]:
    """Id and name, by id. DatasetError for what is no category, and for what is there twice."""
    place = source.place(file.key)
    names: dict[int, str] = {}
    for one in file.content["categories"]:
        if not isinstance(one, dict) or type(one.get("id")) is not int or not _is_text(one.get("name")):
            raise DatasetError(
                f"{place}: a category lacks a whole number id or a name ({_short(one)}): correct it"
            )
        if one["id"] in names:
            raise DatasetError(f"{place} has two categories of the id {one['id']}: correct one of them")
        if one["name"] in names.values():
            raise DatasetError(f"{place} has two categories of the name {one['name']!r}: rename one of them")
        names[one["id"]] = one["name"]
    return sorted(names.items())


def _classes(categories: list[tuple[int, str]]) -> tuple[str, ...]:
    names = tuple(name for _, name in categories)
    return names if BACKGROUND in names else (BACKGROUND, *names)


def _labelled_images(
    source: Source,
    file: _File,
    categories: list[tuple[int, str]],
    classes: tuple[str, ...],
    left_out: list[LeftOut],
) -> Iterator[LabelledImage]:
    images = _images(source, file, left_out)
    numbers = {category: classes.index(name) for category, name in categories}
    odd = list(_assign(file, images, numbers))
    left_out += odd
    _refuse_if_none_is_left(source, file, images.values(), odd)
    uncovered = classes.index(BACKGROUND)
    for image in images.values():
        if image is not None:
            yield LabelledImage(
                file.split, image.key, image.uri, partial(_mask, image, uncovered), file.key,
                (image.height, image.width),
            )  # fmt: skip


def _mask(image: _Image, uncovered: int) -> np.ndarray:
    mask = np.full((image.height, image.width), uncovered, np.uint8)
    for number, shape in image.drawn:
        mask[drawn(shape, image.height, image.width)] = number
    return mask


def _images(source: Source, file: _File, left_out: list[LeftOut]) -> dict[Any, _Image | None]:
    """By id; None for those that cannot be used, which are left out with a reason."""
    images: dict[Any, _Image | None] = {}
    keys: set[str] = set()
    for entry in file.content["images"]:
        image = _image(source, file, entry, images, keys)
        if isinstance(image, str):
            left_out.append(LeftOut(file.key, _image_name(entry), "", image))
            if isinstance(entry, dict) and type(entry.get("id")) in (int, str):
                images.setdefault(entry["id"], None)
        else:
            images[entry["id"]] = image
            keys.add(image.key)
    return images


def _image(
    source: Source, file: _File, entry: Any, images: dict[Any, _Image | None], keys: set[str]
) -> _Image | str:
    """The image of an entry, or why it cannot be used."""
    if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
        return "it is no entry with an id"
    if entry["id"] in images:
        return f"another image has the id {_short(entry['id'])}"
    name, size = entry.get("file_name"), _size(entry)
    if isinstance(size, str):
        return size
    found = image_key(source, file.key, file.split, name) if isinstance(name, str) else None
    if found is None:
        return "there is no such file in the data set"
    if found[1] in keys:
        return "another image of this file has its name"
    return _Image(found[1], source.uris[found[0]], str(name), *size)


def _size(entry: dict[str, Any]) -> tuple[int, int] | str:
    """Height and width, or what is wrong with them."""
    height, width = entry.get("height", 0), entry.get("width", 0)
    known = all(type(value) in (int, float) for value in (height, width))
    # Some tools write 480.0. What is no number is not between two others either.
    if not known or not (1 <= height <= MAX_PIXELS and 1 <= width <= MAX_PIXELS):
        return f"its width and height are {_short(width)} and {_short(height)}, 1 to {MAX_PIXELS} can be read"
    if (height, width) != (int(height), int(width)):
        return f"its width and height are {width} and {height}, no whole numbers"
    if height * width > MAX_PIXELS:
        return f"{int(width)}x{int(height)} is over {MAX_PIXELS} pixels"
    return int(height), int(width)


def _assign(file: _File, images: dict[Any, _Image | None], numbers: dict[int, int]) -> Iterator[LeftOut]:
    """Give each annotation that can be drawn to its image; what of them cannot."""
    for place, annotation in enumerate(file.content["annotations"]):
        label = _annotation_name(annotation, place)
        if not isinstance(annotation, dict) or type(annotation.get("image_id")) not in (int, str):
            yield LeftOut(file.key, "", label, "it is no entry with an image_id")
        elif annotation["image_id"] not in images:
            yield LeftOut(file.key, "", label, f"no image has its image_id {_short(annotation['image_id'])}")
        elif (image := images[annotation["image_id"]]) is not None:
            yield from (
                LeftOut(file.key, image.name, label, reason)
                for reason in _draw_later(annotation, image, numbers)
            )


def _draw_later(annotation: dict[str, Any], image: _Image, numbers: dict[int, int]) -> Iterable[str]:
    """Note what is to be drawn; why some of it cannot."""
    category = annotation.get("category_id")
    try:
        shape = checked_shape(annotation.get("segmentation"), image.height, image.width)
    except OddShapeError as error:
        return [str(error)]
    if type(category) is not int or category not in numbers:
        return [f"no category has its category_id {_short(category)}"]
    image.drawn.append((numbers[category], shape))
    return shape.left_out if isinstance(shape, Polygons) else ()


def _refuse_if_none_is_left(
    source: Source, file: _File, images: Iterable[_Image | None], odd: list[LeftOut]
) -> None:
    """Where all is odd the file is misread, or not what it seems; without a segmentation none is odd."""
    draw = {one.annotation for one in odd if one.annotation} - {
        _annotation_name(annotation, place)
        for place, annotation in enumerate(file.content["annotations"])
        if isinstance(annotation, dict) and not annotation.get("segmentation")
    }
    if draw and not any(image.drawn for image in images if image is not None):
        first = "; ".join([str(one) for one in odd if one.annotation in draw][:_SHOWN_ODD])
        raise DatasetError(f"{source.place(file.key)}: no annotation can be used ({first}): correct the file")


def _annotation_name(annotation: Any, place: int) -> str:
    """By its id, or its place in the list."""
    known = isinstance(annotation, dict) and type(annotation.get("id")) in (int, str)
    return f"annotation {_short(annotation['id'])}" if known else f"annotation at place {place}"


def _image_name(entry: Any) -> str:
    if isinstance(entry, dict) and _is_text(entry.get("file_name")):
        return str(entry["file_name"])
    return _short(entry)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(value: Any) -> str:
    """For a message; a list or an object may be of any size and depth."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
