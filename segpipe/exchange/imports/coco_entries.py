"""The images and annotations of one COCO file: each checked, and left out with a reason when it is odd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from segpipe.errors import DatasetError
from segpipe.exchange.imports.coco_files import image_key
from segpipe.exchange.imports.coco_shapes import OddShapeError, Polygons, Runs, checked_shape, drawn
from segpipe.exchange.imports.labelled import LeftOut, SourceImage
from segpipe.exchange.imports.source import Source
from segpipe.images import MAX_PIXELS

_SHOWN = 60  # characters
_SHOWN_ODD = 3
_NOT_THERE = "there is no such file in the data set"


@dataclass(frozen=True)
class CocoFile:
    """An annotation file's content, with its key in the source and the split that it describes."""

    split: str
    key: str
    content: dict[str, list[Any]]


@dataclass
class _Image:
    """An entry that can be used; drawn: class index and shape of each annotation, in their order."""

    key: str
    uri: str
    name: str
    height: int
    width: int
    drawn: list[tuple[int, Polygons | Runs]] = field(default_factory=list)


def labelled_images(
    source: Source, file: CocoFile, numbers: dict[int, int], uncovered: int
) -> tuple[list[SourceImage], list[LeftOut]]:
    """What can be used of a file, and what cannot; numbers: category id -> class index.

    DatasetError when no annotation that draws something can be used.
    """
    images, odd_images = _images(source, file)
    if odd_images and all(one.reason == _NOT_THERE for one in odd_images) and not any(images.values()):
        reason = f"none of its {len(odd_images)} images is in the data set, not {odd_images[0].image} for one"
        return [], [LeftOut(file.key, "", "", reason)]
    odd = list(_assign(file, images, numbers))
    used = [image for image in images.values() if image is not None]
    _refuse_if_none_is_left(source, file, used, odd)
    return [_labelled(file, image, uncovered) for image in used], [*odd_images, *odd]


def _labelled(file: CocoFile, image: _Image, uncovered: int) -> SourceImage:
    mask, size = partial(_mask, image, uncovered), (image.height, image.width)
    return SourceImage(file.split, image.key, image.uri, mask, file.key, size)


def _mask(image: _Image, uncovered: int) -> np.ndarray:
    mask = np.full((image.height, image.width), uncovered, np.uint8)
    for number, shape in image.drawn:
        mask[drawn(shape, image.height, image.width)] = number
    return mask


def _images(source: Source, file: CocoFile) -> tuple[dict[Any, _Image | None], list[LeftOut]]:
    """By id, None for those that cannot be used; why they cannot."""
    images: dict[Any, _Image | None] = {}
    keys: set[str] = set()
    odd: list[LeftOut] = []
    for entry in file.content["images"]:
        image = _image(source, file, entry, images, keys)
        if isinstance(image, _Image):
            images[entry["id"]] = image
            keys.add(image.key)
            continue
        odd.append(LeftOut(file.key, _image_name(entry), "", image))
        if isinstance(entry, dict) and type(entry.get("id")) in (int, str):
            images.setdefault(entry["id"], None)
    return images, odd


def _image(
    source: Source, file: CocoFile, entry: Any, images: dict[Any, _Image | None], keys: set[str]
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
        return _NOT_THERE
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


def _assign(file: CocoFile, images: dict[Any, _Image | None], numbers: dict[int, int]) -> Iterator[LeftOut]:
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


def _refuse_if_none_is_left(source: Source, file: CocoFile, images: list[_Image], odd: list[LeftOut]) -> None:
    """Where all is odd the file is misread, or not what it seems; without a segmentation none is odd."""
    draw = {one.annotation for one in odd if one.annotation} - {
        _annotation_name(annotation, place)
        for place, annotation in enumerate(file.content["annotations"])
        if isinstance(annotation, dict) and not annotation.get("segmentation")
    }
    if draw and not any(image.drawn for image in images):
        first = "; ".join([str(one) for one in odd if one.annotation in draw][:_SHOWN_ODD])
        raise DatasetError(f"{source.place(file.key)}: no annotation can be used ({first}): correct the file")


def _annotation_name(annotation: Any, place: int) -> str:
    """By its id, or its place in the list."""
    known = isinstance(annotation, dict) and type(annotation.get("id")) in (int, str)
    return f"annotation {_short(annotation['id'])}" if known else f"annotation at place {place}"


def _image_name(entry: Any) -> str:
    if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
        return str(entry["file_name"])
    return _short(entry)


def _short(value: Any) -> str:
    """For a message; a list or an object may be of any size and depth."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
