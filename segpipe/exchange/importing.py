"""`segpipe import`: public layouts of labelled data become the data set that `segpipe train` takes (C1)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from segpipe import storage
from segpipe.datasets import IMAGE_EXTENSIONS, write_dataset
from segpipe.errors import DatasetError, NotFoundError
from segpipe.exchange import known_classes
from segpipe.images import class_palette, decode_image, decode_mask, encode_mask
from segpipe.progress import track
from segpipe.redaction import redact

Layout = Literal["camvid", "cityscapes", "voc", "coco"]
IGNORED = 255
BACKGROUND = "background"
THREADS = 8


@dataclass(frozen=True)
class Pair:
    """An image's URI and how to get its mask, HxW uint8 of C1's class indices."""

    split: str
    key: str
    image_uri: str
    mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class ImportResult:
    """What there is now at the target."""

    target: str
    classes: int
    images: dict[str, int]


def import_dataset(source: str, target: str, layout: Layout) -> ImportResult:
    """Copy images as they are and write masks as indexed PNG; dataset.json comes last.

    Raises DatasetError (the layout is not there, a mask does not fit its image or its classes), StorageError.
    """
    source, root = storage.normalise(source), storage.normalise(target)
    classes, pairs = _READERS[layout](source)
    if not pairs:
        raise DatasetError(f"{redact(source)} has no images in the layout of {layout}: is it its root?")
    with ThreadPoolExecutor(THREADS) as pool, track(len(pairs), "import") as progress:
        for _ in pool.map(partial(_copy, root=root, classes=classes), pairs):
            progress.advance()
    write_dataset(root, PurePosixPath(source).name, classes, IGNORED)
    splits = [pair.split for pair in pairs]
    return ImportResult(redact(root), len(classes), {name: splits.count(name) for name in sorted({*splits})})


def _copy(pair: Pair, root: str, classes: tuple[str, ...]) -> None:
    content, mask = storage.read_bytes(pair.image_uri), pair.mask()
    shape = decode_image(content).shape[:2]
    if mask.shape != shape:
        raise DatasetError(
            f"{pair.image_uri} is {shape[::-1]}, its mask {mask.shape[::-1]}: correct one of them"
        )
    wrong = mask[(mask >= len(classes)) & (mask != IGNORED)]
    if wrong.size:
        raise DatasetError(
            f"the mask of {pair.image_uri} holds {wrong.max()}, and there are {len(classes)} classes"
        )
    folder = storage.join(root, pair.split)
    extension = PurePosixPath(pair.image_uri).suffix.lower()
    storage.put(storage.join(folder, f"images/{pair.key}{extension}"), content)
    storage.put(storage.join(folder, f"masks/{pair.key}.png"), encode_mask(mask, class_palette(len(classes))))


def _camvid(source: str) -> tuple[tuple[str, ...], list[Pair]]:
    """SegNet's layout: train, val, test with trainannot and so on; 11 is void."""
    meaning = np.arange(256, dtype=np.uint8)
    meaning[len(known_classes.CAMVID)] = IGNORED
    pairs = [
        Pair(
            split,
            name,
            uri,
            partial(_mapped, _replaced(uri, f"/{split}/", f"/{split}annot/", ".png"), meaning),
        )
        for split in ("train", "val", "test")
        for name, uri in _images(source, split)
    ]
    return known_classes.CAMVID, pairs


def _cityscapes(source: str) -> tuple[tuple[str, ...], list[Pair]]:
    """leftImg8bit and gtFine; the 19 classes that are evaluated, or those of a labels.json beside them."""
    classes, meaning = _cityscapes_meaning(source)
    pairs = []
    for split in ("train", "val"):
        for name, uri in _images(source, f"leftImg8bit/{split}"):
            labels = uri.replace("/leftImg8bit/", "/gtFine/").replace(
                "_leftImg8bit.png", "_gtFine_labelIds.png"
            )
            key = name.removesuffix("_leftImg8bit")
            pairs.append(Pair(split, key, uri, partial(_mapped, labels, meaning)))
    return classes, pairs


def _cityscapes_meaning(source: str) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        labels = json.loads(storage.read_bytes(storage.join(source, "labels.json")))
        used = [(label["name"], label["id"]) for label in labels if label["trainId"] != IGNORED]
    except NotFoundError:
        used = list(known_classes.CITYSCAPES.items())
    meaning = np.full(256, IGNORED, np.uint8)
    for number, (_, label_id) in enumerate(used):
        meaning[label_id] = number
    return tuple(name for name, _ in used), meaning


def _voc(source: str) -> tuple[tuple[str, ...], list[Pair]]:
    """JPEGImages, SegmentationClass and ImageSets; VOC's 21 classes, or those of a labelmap.txt."""
    images = dict(_images(source, "JPEGImages"))
    as_they_are = np.arange(256, dtype=np.uint8)
    pairs = []
    for split, uri in _lists(source):
        for key in storage.read_bytes(uri).decode().split():
            mask = storage.join(source, f"SegmentationClass/{key}.png")
            if key not in images:
                raise DatasetError(
                    f"{uri} names {key}, which is not in JPEGImages: remove the line or add the image"
                )
            pairs.append(Pair(split, key, images[key], partial(_mapped, mask, as_they_are)))
    return _voc_classes(source), pairs


def _lists(source: str) -> list[tuple[str, str]]:
    found = _listed(storage.join(source, "ImageSets/Segmentation"))
    lists = {PurePosixPath(item.key).stem: item.uri for item in found if item.key.endswith(".txt")}
    if {"train", "val"} & lists.keys():
        lists.pop("trainval", None)  # both again
    return sorted(lists.items())


def _voc_classes(source: str) -> tuple[str, ...]:
    try:
        lines = storage.read_bytes(storage.join(source, "labelmap.txt")).decode().splitlines()
    except NotFoundError:
        return known_classes.VOC
    return tuple(line.rsplit(":", 3)[0] for line in lines if line and not _is_comment(line))


def _is_comment(line: str) -> bool:
    """A class's name may begin with # too: what makes a line one of a class is its colour."""
    return line.startswith("#") and not re.search(r":\d+,\d+,\d+:[^:]*:[^:]*$", line)


def _coco(source: str) -> tuple[tuple[str, ...], list[Pair]]:
    """annotations/SPLIT.json with the images in SPLIT; of two annotations over a pixel the later one counts.

    What no annotation covers is the category `background`, or class 0 of that name where there is none.
    """
    if find_spec("pycocotools") is None:
        raise DatasetError("COCO's masks need pycocotools: pip install 'segpipe[coco]'")
    pairs: list[Pair] = []
    classes: tuple[str, ...] = ()
    for item in _listed(storage.join(source, "annotations")):
        content = json.loads(storage.read_bytes(item.uri))
        found = _coco_classes(content)
        if classes and found != classes:
            raise DatasetError(f"{item.uri} has other categories than the files before it: import them apart")
        classes = found
        pairs += _coco_pairs(source, PurePosixPath(item.key).stem, content, classes)
    return classes, pairs


def _coco_classes(content: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(one["name"] for one in sorted(content["categories"], key=lambda one: one["id"]))
    return names if BACKGROUND in names else (BACKGROUND, *names)


def _coco_pairs(source: str, split: str, content: dict[str, Any], classes: tuple[str, ...]) -> Iterator[Pair]:
    numbers = {one["id"]: classes.index(one["name"]) for one in content["categories"]}
    uncovered = classes.index(BACKGROUND)
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        uri = storage.join(source, f"{split}/{image['file_name']}")
        key = str(PurePosixPath(image["file_name"]).with_suffix(""))
        drawn = of_image.get(image["id"], [])
        yield Pair(split, key, uri, partial(_coco_mask, image, drawn, numbers, uncovered))


def _coco_mask(
    image: dict[str, Any], drawn: list[dict[str, Any]], numbers: dict[int, int], uncovered: int
) -> np.ndarray:
    from pycocotools import mask as coco_masks

    height, width = image["height"], image["width"]
    mask = np.full((height, width), uncovered, np.uint8)
    for annotation in drawn:
        shape = annotation["segmentation"]
        if isinstance(shape, list):
            shape = coco_masks.merge(coco_masks.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            shape = coco_masks.frPyObjects(shape, height, width)
        mask[coco_masks.decode(shape).astype(bool)] = numbers[annotation["category_id"]]
    return mask


def _mapped(uri: str, meaning: np.ndarray) -> np.ndarray:
    """The mask at a URI with each value replaced by its meaning (256)."""
    return np.asarray(meaning[decode_mask(storage.read_bytes(uri))])


def _images(source: str, folder: str) -> Iterator[tuple[str, str]]:
    """(path without extension, URI) of the images below a folder; none when it is not there."""
    for item in _listed(storage.join(source, folder)):
        if PurePosixPath(item.key).suffix.lower() in IMAGE_EXTENSIONS:
            yield item.key.rpartition(".")[0], item.uri


def _listed(folder: str) -> list[storage.StoredObject]:
    try:
        return list(storage.list_objects(folder))
    except NotFoundError:
        return []


def _replaced(uri: str, old: str, new: str, extension: str) -> str:
    head, _, tail = uri.rpartition(old)
    return f"{head}{new}{tail.rpartition('.')[0]}{extension}"


_READERS: dict[Layout, Callable[[str], tuple[tuple[str, ...], list[Pair]]]] = {
    "camvid": _camvid,
    "cityscapes": _cityscapes,
    "voc": _voc,
    "coco": _coco,
}
