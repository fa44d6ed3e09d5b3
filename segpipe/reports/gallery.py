"""Small pictures of labelled images for a page: the image, its mask over it, where the mask may be wrong."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from segpipe import storage
from segpipe.errors import RunError, SegpipeError
from segpipe.images import decode_image, decode_mask, overlay
from segpipe.redaction import redact
from segpipe.reports.page import Picture
from segpipe.review.drafts import read_mask

SIDE_PIXELS = 320
QUALITY = 80


@dataclass(frozen=True)
class GalleryItem:
    """One image: its pictures side by side, and what is said about it."""

    name: str
    text: str
    panes: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """Images that were treated alike."""

    title: str
    caption: str
    items: tuple[GalleryItem, ...]


def gallery_item(row: dict[str, Any], source: str, palette: np.ndarray) -> GalleryItem:
    """A manifest row as an item; what cannot be shown any more is said in its place."""
    name = redact(row["image_uri"].removeprefix(f"{source}/"))
    try:
        panes, problem = _panes(row, palette), ""
    except SegpipeError as error:
        panes, problem = (), f"; cannot be shown: {redact(str(error))}"
    return GalleryItem(name, _text(row) + problem, panes)


def _text(row: dict[str, Any]) -> str:
    if row["decision"] == "failed":
        return f"{row['reason']}: {redact(row['error'] or '')}"
    return (
        f"{row['reason']}, confidence {row['confidence']:.2f}"
        if row["confidence"] is not None
        else row["reason"]
    )


def _panes(row: dict[str, Any], palette: np.ndarray) -> tuple[Picture, ...]:
    if row["mask_uri"] is None:
        return ()
    image = decode_image(_as_labelled(row["image_uri"], row["image_etag"]))
    mask = read_mask(row["mask_uri"], row["mask_sha256"])
    panes = [small_picture("image", image), small_picture("mask", overlay(image, mask, palette))]
    if row["confidence_map_uri"] is not None:
        confidence = decode_mask(storage.read_bytes(row["confidence_map_uri"]))
        panes.append(small_picture("doubt", _heat(image, confidence)))
    return tuple(panes)


def _as_labelled(image_uri: str, etag: str) -> bytes:
    blob = storage.read(image_uri)
    if blob.etag != etag:
        raise RunError(f"{image_uri} was replaced since it was labelled: label it again")
    return blob.data


def _heat(image: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The image in grey, the redder the less sure: HxWx3 uint8 of confidence HxW, 0 to 255."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    doubt = 1 - confidence[..., None] / 255
    return ((1 - doubt) * grey + doubt * np.array([213.0, 94.0, 0.0])).astype(np.uint8)


def small_picture(title: str, pixels: np.ndarray) -> Picture:
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=QUALITY)
    return Picture(f"{title}.jpg", title, "", content.getvalue(), "image/jpeg")
