"""Images and PNG masks of colours, with a label map in the root."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
        for keys in [dict(source.images(f"{folder}images")).keys()]
        for key, image in source.images(f"{folder}images")
        for mask in [_mask_key(source, folder, key, image, keys)]
    ]
    return Found(classes, images)


def _splits(source: Source) -> Iterator[tuple[str, str]]:
    """Split and the start of its keys."""
    if any(source.images("images")):
        yield _ONLY_SPLIT, ""
    for name in sorted({key.partition("/")[0] for key in source.uris if "/images/" in key}):
        if any(source.images(f"{name}/images")):
            yield name, f"{name}/"


def _mask_key(source: Source, folder: str, key: str, image: str, keys: Collection[str]) -> str:
    """keys: of all images beside it, since a_mask.png may be the mask of an image a_mask."""
    names = [key + ending for ending in _ENDINGS if not ending or key + ending not in keys]
    candidates = [f"{folder}{masks}/{name}.png" for masks in _MASK_FOLDERS for name in names]
    if found := source.only_one(image, candidates):
        return found
    present = [name for name in _MASK_FOLDERS if any(source.below(folder + name))]
    there = source.holds(folder + (present or _MASK_FOLDERS)[0])
    raise DatasetError(f"{source.place(image)} has no PNG mask of its name: add it or remove it ({there})")
