"""Small labelled data sets, drawn: noisy ground with a disc, class 0 and 1; odd ones are made of these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = {"train": 6, "val": 3, "calibration": 4}
Encode = Callable[[np.ndarray], bytes]


def png(pixels: np.ndarray | Image.Image, **options: Any) -> bytes:
    return saved(pixels, "PNG", **options)


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    content = BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(content, kind, **options)
    return content.getvalue()


def scene(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A picture HxWx3 uint8 with its mask HxW uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = ((y - random.integers(10, 38)) ** 2 + (x - random.integers(10, 54)) ** 2 < 64).astype(np.uint8)
    picture = np.where(mask[..., None] == 1, 190, 60) + random.normal(0, 12, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8), mask


def write_set(
    root: Path,
    splits: Mapping[str, int] = SPLITS,
    image: Encode = png,
    mask: Encode = png,
    extension: str = "png",
    size: tuple[int, int] = (48, 64),
    classes: tuple[str, ...] = ("ground", "disc"),
) -> Path:
    """A data set at root: SPLIT/images/SPLIT_000.png and so on, each image another."""
    description = {"name": root.name, "classes": classes, "ignore_index": 255}
    put(root / "dataset.json", json.dumps(description).encode())
    seed = 0
    for split, count in splits.items():
        for number in range(count):
            seed += 1
            pixels, indices = scene(seed, *size)
            put(root / split / "images" / f"{split}_{number:03d}.{extension}", image(pixels))
            put(root / split / "masks" / f"{split}_{number:03d}.png", mask(indices))
    return root


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags
