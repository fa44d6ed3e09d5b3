"""Cityscapes: leftImg8bit and gtFine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from segpipe.datasets import IGNORED
from segpipe.errors import DatasetError
from segpipe.exchange.imports import known_classes
from segpipe.exchange.imports.colours import mapped_mask
from segpipe.exchange.imports.labelled import Found, SourceImage
from segpipe.exchange.imports.source import Source
from segpipe.validation import parse_json

_LABELS = "labels.json"
Label = tuple[str, int, int]  # name, id, trainId


def read(source: Source) -> Found:
    """The 19 classes that are evaluated, or those of a labels.json beside the folders.

    Masks are labelIds or, where there are none, labelTrainIds. The test split, published without labels, is
    not read.
    """
    labels = _labels(source)
    return Found(tuple(name for name, _, _ in labels), list(_labelled_images(source, labels)))


def _labelled_images(source: Source, labels: list[Label]) -> Iterator[SourceImage]:
    by_id, train_ids = _meaning([label_id for _, label_id, _ in labels]), [label[2] for label in labels]
    by_train_id = _meaning(train_ids)
    for split in ("train", "val"):
        for name, image in source.images(f"leftImg8bit/{split}"):
            key = name.removesuffix("_leftImg8bit")
            mask, meaning = f"gtFine/{split}/{key}_gtFine_labelIds.png", by_id
            if mask not in source.uris:
                mask, meaning = f"gtFine/{split}/{key}_gtFine_labelTrainIds.png", by_train_id
                _require_apart(source, mask, train_ids)
            _require(source, mask, image)
            yield SourceImage(
                split, key, source.uris[image], partial(mapped_mask, source, mask, meaning), mask
            )


def _require(source: Source, mask: str, image: str) -> None:
    if mask not in source.uris:
        folder = mask.rpartition("/")[0]
        raise DatasetError(
            f"{source.place(image)} has neither ..._gtFine_labelIds.png nor ..._gtFine_labelTrainIds.png: "
            f"{source.holds(folder)}"
        )


def _require_apart(source: Source, mask: str, train_ids: list[int]) -> None:
    """Labels may share a trainId, as long as no mask is read by it."""
    if mask in source.uris and (repeated := _repeated(train_ids)):
        raise DatasetError(
            f"{source.place(_LABELS)} has two labels of the trainId {repeated[0]}, and {mask} is read by it: "
            "correct one of them"
        )


def _meaning(values: list[int]) -> np.ndarray:
    """Value in the file (256) -> class index, or what is ignored."""
    meaning = np.full(256, IGNORED, np.uint8)
    meaning[values] = np.arange(len(values))
    return meaning


def _labels(source: Source) -> list[Label]:
    """Those that are evaluated, in the order of their classes."""
    if _LABELS not in source.uris:
        return [(name, at, number) for number, (name, at) in enumerate(known_classes.CITYSCAPES.items())]
    place = source.place(_LABELS)
    try:
        content = parse_json(source.content(_LABELS))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place} is not valid JSON ({error}): correct it") from None
    if not isinstance(content, list) or not all(_is_label(one) for one in content):
        raise DatasetError(f"{place} must be a list of name, id and trainId, as Cityscapes defines them")
    used = [(one["name"], one["id"], one["trainId"]) for one in content]
    labels = [label for label in used if label[1] in range(256) and label[2] in range(IGNORED)]
    for part, what in enumerate(("name", "id")):
        if repeated := _repeated([label[part] for label in labels]):
            raise DatasetError(f"{place} has two labels of the {what} {repeated[0]!r}: correct one of them")
    return labels


def _repeated(values: list[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _is_label(label: Any) -> bool:
    return (
        isinstance(label, dict)
        and isinstance(label.get("name"), str)
        and type(label.get("id")) is int
        and type(label.get("trainId")) is int
    )
