"""CamVid: SegNet's folders, those with colour masks, and the original ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from segpipe.datasets import IGNORED
from segpipe.errors import DatasetError
from segpipe.exchange.imports import known_classes
from segpipe.exchange.imports.colours import coloured_mask, mapped_mask, mask_kind
from segpipe.exchange.imports.label_maps import NAMES, read_label_map
from segpipe.exchange.imports.labelled import Found, SourceImage
from segpipe.exchange.imports.source import Source

_SPLITS = ("train", "val", "test")
_MASK_FOLDERS = ("annot", "_labels")
_ORIGINAL = ("701_StillsRaw_full", "LabeledApproved_full")
Paired = tuple[str, str, str, str]  # split, key, image's key, mask's key


def read(source: Source) -> Found:
    """Masks of indices mean SegNet's 11 classes, 11 is void; masks of colours mean those of a label map."""
    pairs = list(_pairs(source))
    if not pairs:
        return Found(known_classes.CAMVID, [])
    classes, mask_of = _meaning(source, pairs[0][3])
    return Found(
        classes,
        [
            SourceImage(split, key, source.uris[image], partial(mask_of, source, mask), mask)
            for split, key, image, mask in pairs
        ],
    )


def _meaning(source: Source, first_mask: str) -> tuple[tuple[str, ...], Callable[[Source, str], np.ndarray]]:
    """Classes, and how a mask is read, by what the first mask and a label map say."""
    label_map, kind = read_label_map(source), mask_kind(source, first_mask)
    if kind == "grey" or (kind == "palette" and label_map is None):
        meaning = np.arange(256, dtype=np.uint8)
        meaning[len(known_classes.CAMVID)] = IGNORED
        return known_classes.CAMVID, partial(mapped_mask, meaning=meaning)
    if label_map is None:
        raise DatasetError(
            f"{source.place(first_mask)} is a mask of colours: put what they mean into the data set's root, "
            f"one of {', '.join(NAMES)}"
        )
    classes, colours = label_map
    return classes, partial(coloured_mask, colours=colours)


def _pairs(source: Source) -> Iterator[Paired]:
    for split, images, masks in _folders(source):
        for key, image in source.images(images):
            yield split, key, image, _mask_key(source, key, masks, image)


def _folders(source: Source) -> Iterator[tuple[str, str, str]]:
    """Split, folder of images, folder of masks."""
    for split in _SPLITS:
        present = [split + ending for ending in _MASK_FOLDERS if any(source.below(split + ending))]
        if len(present) > 1:
            raise DatasetError(
                f"{source.place(split)} has two folders of masks, {present[0]} and {present[1]}: remove one"
            )
        yield split, split, (present or [split + _MASK_FOLDERS[0]])[0]
    yield "train", *_ORIGINAL


def _mask_key(source: Source, key: str, folder: str, image: str) -> str:
    candidates = [f"{folder}/{key}{ending}.png" for ending in ("", "_L")]
    if found := source.only_one(image, candidates):
        return found
    raise DatasetError(
        f"{source.place(image)} has no mask, neither {' nor '.join(candidates)}: add it or remove the image "
        f"({source.holds(folder)})"
    )
