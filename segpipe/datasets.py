"""Labelled data sets (contract C1) at any fsspec URL: open, check, read and write.

ROOT/dataset.json            {"name": ..., "classes": [...], "ignore_index": 255}, and perhaps
                             "image": {"range": [0, 4095]}
ROOT/SPLIT/images/KEY.jpg    of any format that labelling takes, under any extension
ROOT/SPLIT/masks/KEY.png     one channel, class indices, sized like the image as displayed
ROOT/groups.csv              optional: which images belong together (groups.py)
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
from PIL import ImageFile

from segpipe import storage
from segpipe.concurrency import Budget
from segpipe.errors import DatasetError, ImageError, NotFoundError, TooLargeError
from segpipe.image_range import ImageRange, checked_range, plain_range, shown_range
from segpipe.images import (
    MAX_BYTES,
    MAX_PIXELS,
    DecodedImage,
    MaskColours,
    class_palette,
    decode_mask_colours,
    decode_opened,
    encode_image,
    encode_mask,
    open_image,
)
from segpipe.listing import left_aside
from segpipe.printable import is_printable
from segpipe.validation import parse_json

DESCRIPTION = "dataset.json"
UNFINISHED_IMPORT = "import-unfinished.json"  # lies in a data set while segpipe import adds to it
MASK_EXTENSION = ".png"
IGNORED = 255  # the ignore index of what segpipe writes, and of a data set that names none
MAX_CLASSES = 255  # a mask stores one byte a pixel, and one value is left for the ignore index
READ_THREADS = 8
Content = TypeVar("Content")


@dataclass(frozen=True)
class Dataset:
    """A labelled data set: where it is and what its masks mean.

    image_range: the values of its images, as stored, that become 0 and 255; None: each file's full range.
    """

    root: str
    name: str
    classes: tuple[str, ...]
    ignore_index: int
    image_range: ImageRange | None = None


@dataclass(frozen=True)
class Sample:
    """One image with its mask; `key` is the image's path below images/ without its extension."""

    key: str
    image_uri: str
    mask_uri: str


@dataclass(frozen=True)
class Split:
    """A split's samples, sorted by key, and how many files were left aside, by their kind (listing.py)."""

    samples: list[Sample]
    left_aside: Counter[str]


@dataclass(frozen=True)
class LabelledImage:
    """A sample's files, decoded and not yet checked against each other or the classes."""

    image: DecodedImage
    mask: np.ndarray
    palette: np.ndarray | None


def open_dataset(root: str) -> Dataset:
    """Read and check ROOT/dataset.json.

    Raises DatasetError when it is missing, no JSON, or names no usable classes, ignore index and range, and
    while an import into the data set has not ended.
    """
    dataset = read_description(root)
    if storage.exists(storage.join(dataset.root, UNFINISHED_IMPORT)):
        raise DatasetError(
            f"{dataset.root} holds an import that did not end ({UNFINISHED_IMPORT} says which): run it again"
        )
    return dataset


def read_description(root: str) -> Dataset:
    """As `open_dataset`, also of a data set that an import is adding to."""
    root = storage.normalise(root)
    uri = storage.join(root, DESCRIPTION)
    try:
        description = parse_json(storage.read_bytes(uri))
    except NotFoundError:
        raise DatasetError(
            f"{uri} is missing: a data set's root needs it, with name, classes and ignore_index"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{uri} is not valid JSON ({error}): correct it") from None
    if not isinstance(description, dict):
        raise DatasetError(f'{uri} must be a JSON object such as {{"classes": ["background", "cell"]}}')
    classes = _checked_classes(description.get("classes"), uri)
    ignore_index = _checked_ignore_index(description.get("ignore_index", IGNORED), classes, uri)
    name = str(description.get("name") or PurePosixPath(root).name)
    return Dataset(root, name, classes, ignore_index, _checked_image(description.get("image"), uri))


def list_splits(dataset: Dataset) -> list[str]:
    """Names of the splits that have images, sorted. StorageError."""
    keys = (item.key.split("/", 2) for item in storage.list_objects(dataset.root))
    return sorted({key[0] for key in keys if len(key) == 3 and key[1] == "images" and key[0][0] != "."})


def list_samples(dataset: Dataset, split: str) -> list[Sample]:
    """All samples of a split, sorted by key. Raises DatasetError as `list_split`."""
    return list_split(dataset, split).samples


def list_split(dataset: Dataset, split: str) -> Split:
    """What a split holds.

    Raises DatasetError when the split is missing or empty, when an image lacks its mask or a mask its image,
    and when two images share a key. Files that are no images by their name (listing.py) are counted.
    """
    uris = _split_uris(dataset, split)
    skipped: Counter[str] = Counter()
    images = _by_key(_looked_at(uris, "images/", skipped))
    files = dict(_looked_at(uris, "masks/", skipped))
    masks = _by_key((path, uri) for path, uri in files.items() if path.lower().endswith(MASK_EXTENSION))
    folder = storage.join(dataset.root, split)
    if not images:
        raise DatasetError(f"{folder}/images holds no image: put the split's images there")
    _refuse_unpaired(images, masks, files, folder)
    samples = [Sample(key, images[key], masks[key]) for key in sorted(images)]
    return Split(samples, skipped)


def read_sample(
    dataset: Dataset, sample: Sample, in_work: Budget | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Image (HxWx3 uint8, displayed orientation) and mask (HxW uint8, class indices or the ignore index).

    `in_work` bounds the pixels of the images that are being read at once. Raises DatasetError when either
    cannot be decoded, their sizes differ or a class is out of range.
    """
    with open_sample(dataset, sample, in_work or Budget(MAX_PIXELS)) as pair:
        return pair


@contextmanager
def open_sample(dataset: Dataset, sample: Sample, in_work: Budget) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `read_sample`, whose pixels count as in work for as long as it is open."""
    with open_labelled(dataset, sample, in_work) as labelled:
        check_labelled(dataset, sample, labelled)
        yield labelled.image.pixels, labelled.mask


@contextmanager
def open_labelled(dataset: Dataset, sample: Sample, in_work: Budget) -> Iterator[LabelledImage]:
    """A sample's files as they are; `in_work` bounds the pixels of all images that are open at once.

    Raises DatasetError when either cannot be decoded.
    """
    header = _decoded(_open_image, sample.image_uri)
    with in_work.held(header.width * header.height):
        image = _decoded_by(partial(decode_opened, header, None, dataset.image_range), sample.image_uri)
        mask = _decoded(_decode_indices, sample.mask_uri)
        yield LabelledImage(image, mask.values, mask.palette)


def read_image(dataset: Dataset, sample: Sample) -> np.ndarray:
    """A sample's image, HxWx3 uint8 as displayed. Raises DatasetError when it cannot be decoded."""
    header = _decoded(_open_image, sample.image_uri)
    return _decoded_by(partial(decode_opened, header, None, dataset.image_range), sample.image_uri).pixels


def check_labelled(dataset: Dataset, sample: Sample, labelled: LabelledImage) -> None:
    """Raises DatasetError when the sizes differ or a class is out of range."""
    _check_size(labelled.image, labelled.mask, sample)
    _check_range(labelled.mask, dataset, sample.mask_uri)


def fingerprint(dataset: Dataset, split: str) -> str:
    """SHA-256 (hex) over classes, ignore index, range, keys and the bytes of a split's images and masks."""
    meaning: list[Any] = [dataset.classes, dataset.ignore_index]
    if dataset.image_range is not None:
        meaning.append(dataset.image_range)
    digest = hashlib.sha256(json.dumps(meaning).encode())
    samples = list_samples(dataset, split)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        contents = pool.map(_content_digest, samples)
        for sample, content in zip(samples, contents, strict=True):
            digest.update(json.dumps([sample.key, *content]).encode())
    return digest.hexdigest()


def described(
    root: str, name: str, classes: Iterable[str], ignore_index: int, image_range: ImageRange | None = None
) -> Dataset:
    """A data set still to be written; DatasetError when classes, ignore index or range are unusable."""
    root = storage.normalise(root)
    uri = storage.join(root, DESCRIPTION)
    checked = _checked_classes(list(classes), uri)
    in_range = _checked_image(None if image_range is None else {"range": image_range}, uri)
    return Dataset(root, name, checked, _checked_ignore_index(ignore_index, checked, uri), in_range)


def write_dataset(
    root: str, name: str, classes: Iterable[str], ignore_index: int, image_range: ImageRange | None = None
) -> Dataset:
    """Write ROOT/dataset.json; DatasetError when classes, ignore index or range are unusable."""
    dataset = described(root, name, classes, ignore_index, image_range)
    description: dict[str, Any] = {
        "name": name,
        "classes": list(dataset.classes),
        "ignore_index": ignore_index,
    }
    if dataset.image_range is not None:
        description["image"] = {"range": plain_range(dataset.image_range)}
    storage.put(storage.join(dataset.root, DESCRIPTION), json.dumps(description, indent=1).encode())
    return dataset


def write_sample(dataset: Dataset, split: str, key: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Write one sample without loss: image HxWx3 uint8, mask HxW uint8; DatasetError when they do not fit."""
    folder = storage.join(dataset.root, split)
    sample = Sample(key, storage.join(folder, f"images/{key}.png"), storage.join(folder, f"masks/{key}.png"))
    check_labelled(
        dataset,
        sample,
        LabelledImage(DecodedImage(image, image.shape[0], image.shape[1], 1, False), mask, None),
    )
    storage.put(sample.mask_uri, encode_mask(mask, class_palette(len(dataset.classes))))
    storage.put(sample.image_uri, encode_image(image))


def require_classes(classes: Iterable[str], place: str) -> None:
    """DatasetError, which names the place, for classes that no data set can have."""
    _checked_classes(list(classes), place)


def _checked_classes(classes: Any, uri: str) -> tuple[str, ...]:
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise DatasetError(f'{uri}: "classes" must be a list of names, in the order of the mask\'s indices')
    if odd := [name for name in classes if not name.strip() or not is_printable(name)]:
        raise DatasetError(f"{uri}: class {odd[0]!r} is blank or has control characters; name it in letters")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DatasetError(
            f'{uri}: "classes" has {len(classes)} names; segmentation needs 2 to {MAX_CLASSES} of them'
        )
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated:
        raise DatasetError(f'{uri}: "classes" names {repeated[0]!r} twice; give every class its own name')
    return tuple(classes)


def _checked_ignore_index(ignore_index: Any, classes: tuple[str, ...], uri: str) -> int:
    if type(ignore_index) is not int or not len(classes) <= ignore_index <= 255:
        raise DatasetError(
            f'{uri}: "ignore_index" is {ignore_index!r}; with {len(classes)} classes it must be '
            f"a whole number from {len(classes)} to 255, so that it is no class"
        )
    return ignore_index


def _checked_image(image: Any, uri: str) -> ImageRange | None:
    if image is None:
        return None
    if not isinstance(image, dict) or image.keys() != {"range"}:
        raise DatasetError(
            f'{uri}: "image" must be {{"range": [LOW, HIGH]}}, the values that become 0 and 255'
        )
    try:
        return checked_range(image["range"])
    except ValueError as error:
        raise DatasetError(
            f'{uri}: "image": {error}; give the values, as stored, that become 0 and 255, such as '
            f'{{"range": {shown_range((0, 4095))}}} for 12 bits'
        ) from None


def _split_uris(dataset: Dataset, split: str) -> dict[str, str]:
    """Key below the split -> URI, for every object of the split."""
    try:
        uris = {item.key: item.uri for item in storage.list_objects(storage.join(dataset.root, split))}
    except NotFoundError:
        uris = {}
    if not uris:
        present = ", ".join(list_splits(dataset)) or "none"
        raise DatasetError(f"{dataset.root} has no split {split!r}; it has: {present}; name one of them")
    return uris


def _looked_at(uris: dict[str, str], folder: str, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """(path below a folder, URI) of what may be an image; what is none by its name is counted."""
    for path, uri in uris.items():
        if not path.startswith(folder):
            continue
        if reason := left_aside(path.removeprefix(folder)):
            skipped[reason] += 1
        else:
            yield path.removeprefix(folder), uri


def _by_key(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Sample key -> URI; DatasetError when two files share a key."""
    found: dict[str, str] = {}
    for path, uri in files:
        key = key_of(path)
        if key in found:
            raise DatasetError(f"{found[key]} and {uri} share the key {key!r}: rename or remove one")
        found[key] = uri
    return found


def key_of(path: str) -> str:
    """The sample key of a file: its path without what follows the last dot of its name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _refuse_unpaired(
    images: dict[str, str], masks: dict[str, str], files: dict[str, str], folder: str
) -> None:
    """`files` is all that lies in the masks' folder, so that a mask under a wrong name can be named."""
    if bare := images.keys() - masks.keys():
        taken = {masks[key] for key in images.keys() & masks.keys()}
        unused = sorted(path for path, uri in files.items() if uri not in taken)
        lies_there = f"; {unused[0]} lies there, which is the KEY.png of no image" if unused else ""
        raise DatasetError(
            f"{images[min(bare)]} has no mask in {folder}/masks{_more(bare)}{lies_there}: "
            f"add masks/{min(bare)}.png or remove the image"
        )
    if bare := masks.keys() - images.keys():
        raise DatasetError(
            f"{masks[min(bare)]} has no image in {folder}/images{_more(bare)}: add KEY.jpg, or of another "
            "format, or remove the file"
        )


def _more(keys: set[str]) -> str:
    return f" (nor have {len(keys) - 1} more)" if len(keys) > 1 else ""


def _open_image(data: bytes) -> ImageFile.ImageFile:
    return open_image(data, MAX_PIXELS)


def _decode_indices(data: bytes) -> MaskColours:
    mask = decode_mask_colours(data)
    if mask.values.ndim != 2:
        raise ImageError(
            "unsupported",
            "masks must be one channel of class indices, this one has colours (segpipe import --format "
            "colour-masks takes those, with their label map)",
        )
    return mask


def _decoded(decode: Callable[[bytes], Content], uri: str) -> Content:
    return _decoded_by(lambda: decode(storage.read(uri, MAX_BYTES).data), uri)


def _decoded_by(decode: Callable[[], Content], uri: str) -> Content:
    try:
        return decode()
    except (ImageError, TooLargeError) as error:
        raise DatasetError(f"{uri} cannot be used: {error}; replace or remove it") from error


def _check_size(image: DecodedImage, mask: np.ndarray, sample: Sample) -> None:
    if (image.height, image.width) != mask.shape:
        turned = (
            f" (EXIF orientation {image.orientation} turns it; the mask has the size of its stored pixels)"
            if mask.shape == (image.width, image.height) and image.orientation != 1
            else ""
        )
        raise DatasetError(
            f"{sample.mask_uri} is {mask.shape[1]}x{mask.shape[0]} but its image {sample.image_uri} is "
            f"{image.width}x{image.height} as displayed{turned}: give the mask its image's size and "
            "orientation"
        )


def _check_range(mask: np.ndarray, dataset: Dataset, uri: str) -> None:
    wrong = mask[(mask >= len(dataset.classes)) & (mask != dataset.ignore_index)]
    if wrong.size:
        raise DatasetError(
            f"{uri} holds class {int(wrong.max())} but the data set has {len(dataset.classes)} classes "
            f"(0 to {len(dataset.classes) - 1}, {dataset.ignore_index} is ignored): correct the mask or "
            f"{DESCRIPTION}"
        )


def _content_digest(sample: Sample) -> tuple[str, str]:
    image, mask = (storage.read_bytes(uri) for uri in (sample.image_uri, sample.mask_uri))
    return hashlib.sha256(image).hexdigest(), hashlib.sha256(mask).hexdigest()
