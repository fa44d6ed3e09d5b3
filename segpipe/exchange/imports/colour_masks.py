"""Images and PNG masks of colours, with a label map in the root."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from segpipe.errors import DatasetError
from segpipe.exchange.imports.colours import coloured_mask
from segpipe.exchange.imports.label_maps import NAMES, read_label_map
from segpipe.exchange.imports.labelled import Found, SourceImage
from segpipe.exchange.imports.source import Source

_MASK_FOLDERS = ("masks", "labels")
_ENDINGS = ("", "_mask", "_label", "_labels", "_gt", "_L")
_ONLY_SPLIT = "train"


def read(source: Source) -> Found:
    """SPLIT/images and SPLIT/masks, or images and masks alone; a mask is named as its image, or ..._mask."""
    splits = list(_splits(source))
    if not splits:
        return Found((), [])
    label_map = read_label_map(source)
    if label_map is None:
        raise DatasetError(f"{source.place('')} has no label map: put one of {', '.join(NAMES)} there")
    classes, colours = label_map
    images = [
        SourceImage(split, key, source.uris[image], partial(coloured_mask, source, mask, colours), mask)
        for split, folder in splits
        for key, image in source.images(f"{folder}images")
        for mask in [_mask_key(source, folder, key, image)]
    ]
    return Found(classes, images)


def _splits(source: Source) -> Iterator[tuple[str, str]]:
    """Split and the start of its keys."""
    if any(source.images("images")):
        yield _ONLY_SPLIT, ""
    for name in sorted({key.partition("/")[0] for key in source.uris if "/images/" in key}):
        if any(source.images(f"{name}/images")):
            yield name, f"{name}/"


def _mask_key(source: Source, folder: str, key: str, image: str) -> str:
    candidates = (f"{folder}{masks}/{key}{ending}.png" for masks in _MASK_FOLDERS for ending in _ENDINGS)
    for candidate in candidates:
        if candidate in source.uris:
            return candidate
    present = [name for name in _MASK_FOLDERS if any(source.below(folder + name))]
    there = source.holds(folder + (present or _MASK_FOLDERS)[0])
    raise DatasetError(f"{source.place(image)} has no PNG mask of its name: add it or remove it ({there})")
