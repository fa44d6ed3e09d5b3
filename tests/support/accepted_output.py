"""An OUTPUT with accepted masks in which what is easily lost is found."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segpipe import storage
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part

CLASSES = ("background", "cell, round", "Straße")


def masks() -> dict[str, np.ndarray]:
    """By image name: what is easily lost."""
    ring = np.zeros((20, 30), np.uint8)
    ring[3:15, 4:20] = 1
    ring[6:9, 7:12] = 0  # a hole
    ring[11, 15] = 2  # one pixel in it
    diagonal = np.zeros((9, 9), np.uint8)
    diagonal[2:4, 2:4] = diagonal[4:6, 4:6] = 2
    unknown = np.full((7, 11), 255, np.uint8)
    unknown[2:5, :] = 1
    noise = np.random.default_rng(0).integers(0, 3, (17, 13)).astype(np.uint8)
    return {
        "a/ring.png": ring,
        "b/ring.png": diagonal,
        "unbekannt ü.png": unknown,
        "one pixel.png": np.full((1, 1), 2, np.uint8),
        "all one.png": np.full((5, 8), 1, np.uint8),
        "noise.png": noise,
    }


@dataclass(frozen=True)
class Labelled:
    """An OUTPUT and the accepted masks in it, by image URI."""

    output: str
    raw: Path
    masks: dict[str, np.ndarray]

    def mask_of(self, target: Path, key: str) -> np.ndarray:
        """By the key that an export gave the image."""
        with (target / "images.csv").open() as file:
            (uri,) = [row["image_uri"] for row in csv.DictReader(file) if row["key"] == key]
        return self.masks[uri]


def accept(
    path: Path, content: bytes, mask: np.ndarray, output: str, make_row: Callable[..., Row], **values: Any
) -> Row:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    encoded = encode_mask(mask, class_palette(len(CLASSES)))
    mask_uri = f"{output}/masks/m/{path.name}-{path.parent.name}.png"
    storage.put(mask_uri, encoded)
    return make_row(
        image_uri=str(path),
        image_etag=storage.etag(str(path)),
        mask_uri=mask_uri,
        mask_sha256=hashlib.sha256(encoded).hexdigest(),
        **values,
    )


def png_of(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write_accepted(tmp_path: Path, make_row: Callable[..., Row]) -> Labelled:
    """Images under raw/, masks and manifest under labels/."""
    raw, output = tmp_path / "raw", str(tmp_path / "labels")
    rows, found = [], {}
    for name, mask in masks().items():
        pixels = np.random.default_rng(1).integers(0, 256, (*mask.shape, 3), np.uint8)
        rows.append(accept(raw / name, png_of(pixels), mask, output, make_row))
        found[rows[-1].image_uri] = mask
    review = make_row(image_uri="/x.png", decision="review", mask_uri="/none")
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table([*rows, review], CLASSES))
    return Labelled(output, raw, found)
