"""Labelled data sets as others lay them out, drawn for a test and read again through segpipe's own reader."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segpipe.config import ImportSettings
from segpipe.datasets import list_samples, list_splits, open_dataset, read_sample
from segpipe.exchange.importing import import_dataset

SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]  # 4x4 pixels in the upper left corner
CAT = [{"id": 1, "name": "cat"}]
Tree = dict[str, bytes]
_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF"}


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, orientation: int = 1) -> None:
    """In the format of the extension; with an EXIF turn if it is not 1."""
    content, exif = io.BytesIO(), Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, _FORMATS[path.suffix], exif=exif)
    put(path, content.getvalue())


def image_entry(file_name: str, height: int, width: int, **values: Any) -> dict[str, Any]:
    return {"id": 1, "file_name": file_name, "height": height, "width": width, **values}


def annotation(segmentation: object = SQUARE, **values: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation, **values}


def put_coco(
    path: Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[object],
    categories: Sequence[object] = CAT,
) -> None:
    put(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def imported(
    root: Path, layout: str, settings: ImportSettings | None = None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes, and the masks by SPLIT/KEY."""
    target = root.parent / f"{root.name}-imported"
    shutil.rmtree(target, ignore_errors=True)
    import_dataset(str(root), str(target), layout, settings)
    dataset = open_dataset(str(target))
    return dataset.classes, {
        f"{split}/{sample.key}": read_sample(dataset, sample)[1]
        for split in list_splits(dataset)
        for sample in list_samples(dataset, split)
    }


def counts(mask: np.ndarray) -> dict[int, int]:
    """Pixels by value."""
    values, found = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), found.tolist(), strict=True))


def tree(root: Path) -> Tree:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
