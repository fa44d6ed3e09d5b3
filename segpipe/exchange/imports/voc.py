"""PASCAL VOC: JPEGImages, SegmentationClass and ImageSets, also as CVAT writes them."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

import numpy as np

from segpipe.errors import DatasetError
from segpipe.exchange.imports import known_classes
from segpipe.exchange.imports.colours import Colours, coloured_mask
from segpipe.exchange.imports.label_maps import checked_lines, labelmap_lines
from segpipe.exchange.imports.labelled import Found, LeftOut, SourceImage
from segpipe.exchange.imports.source import Source
from segpipe.images import class_palette

_LISTS = "ImageSets/Segmentation"
_MASKS = "SegmentationClass"
_LABEL_MAP = "labelmap.txt"
_VOID = np.array([[224, 224, 192]], np.uint8)


def read(source: Source) -> Found:
    """VOC's 21 classes, or those of a labelmap.txt; masks of indices or of its colours.

    A list of which no image has a mask, as of a test split, is left out.
    """
    classes, colours = _meaning(source)
    images = source.image_of_each("JPEGImages")
    found, left_out = [], []
    for split, list_key in _lists(source):
        keys = _listed_keys(source.text(list_key), images)
        if keys and not any(_mask_key(key) in source.uris for key in keys):
            left_out.append(LeftOut(list_key, "", "", f"no image of it has a mask in {_MASKS}"))
            continue
        found += [_labelled(source, split, key, images, list_key, colours) for key in keys]
    return Found(classes, found, left_out)


def _labelled(
    source: Source, split: str, key: str, images: dict[str, list[str]], list_key: str, colours: Colours
) -> SourceImage:
    place = source.place(list_key)
    if key not in images:
        raise DatasetError(
            f"{place} names {key}, which is not in JPEGImages: remove the line or add the image "
            f"({source.holds('JPEGImages')})"
        )
    if len(images[key]) > 1:
        one, other = images[key][:2]
        raise DatasetError(f"{place} names {key}, which is both {one} and {other}: rename or remove one")
    mask = _mask_key(key)
    if mask not in source.uris:
        raise DatasetError(
            f"{place} names {key}, which has no {mask}: remove the line or add the mask "
            f"({source.holds(_MASKS)})"
        )
    return SourceImage(
        split, key, source.uris[images[key][0]], partial(coloured_mask, source, mask, colours), list_key
    )


def _mask_key(key: str) -> str:
    return f"{_MASKS}/{key}.png"


def _listed_keys(text: str, images: dict[str, list[str]]) -> list[str]:
    """One per line, blanks included; some lists have a number after the name, which says nothing here."""
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys(_without_flag(key, images) for key in keys))


def _without_flag(line: str, images: dict[str, list[str]]) -> str:
    name, _, flag = line.rpartition(" ")
    flagged = line not in images and flag in ("-1", "0", "1") and name.strip() in images
    return name.strip() if flagged else line


def _lists(source: Source) -> list[tuple[str, str]]:
    lists = {PurePosixPath(key).stem: key for key in source.below(_LISTS) if key.endswith(".txt")}
    if {"train", "val"} & lists.keys():
        lists.pop("trainval", None)  # both again
    return sorted(lists.items())


def _meaning(source: Source) -> tuple[tuple[str, ...], Colours]:
    if _LABEL_MAP not in source.uris:
        return known_classes.VOC, Colours(class_palette(len(known_classes.VOC)), _VOID, "PASCAL VOC")
    place = source.place(_LABEL_MAP)
    names, colours = checked_lines(labelmap_lines(source.text(_LABEL_MAP)), place)
    return names, Colours(colours, _VOID, place)
