"""Small pictures of labelled images for a page: the image, its mask over it, where the mask may be wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from segpipe import storage
from segpipe.concurrency import Budget
from segpipe.errors import RunError, SegpipeError, TooLargeError
from segpipe.image_range import ImageRange
from segpipe.images import class_palette, decode_mask, decode_scaled, hex_colour, overlay
from segpipe.redaction import redact
from segpipe.reports.page import Picture
from segpipe.review.drafts import read_mask
from segpipe.tiles import Tiles, Tiling

SIDE_PIXELS = 320
DRAWN_PIXELS = 2 * SIDE_PIXELS  # the longer side masks are drawn on, so that their edges come out smooth
LINE = 2  # pixels
QUALITY = 80
BYTES_PER_PIXEL = 28  # that decoding takes at most


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


@dataclass(frozen=True)
class Shown:
    """How a run's images are shown. source: their folder, left out of their names; palette: Kx3 uint8;
    image_range and tiling: the model's; memory: the bytes that all items which are made at once may take."""

    source: str
    palette: np.ndarray
    image_range: ImageRange | None
    tiling: Tiling | None
    memory: Budget


def gallery_item(row: dict[str, Any], shown: Shown) -> GalleryItem:
    """A manifest row as an item; what cannot be shown any more is said in its place."""
    name = redact(row["image_uri"].removeprefix(f"{shown.source}/"))
    try:
        panes, problem = _panes(row, shown), ""
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


def _panes(row: dict[str, Any], shown: Shown) -> tuple[Picture, ...]:
    if row["mask_uri"] is None:
        return ()
    with shown.memory.held(row["image_bytes"] + BYTES_PER_PIXEL * _n_pixels(row)):
        image, mask, confidence = _drawn(row, shown.image_range)
    if shown.tiling is not None:
        image = _with_borders(image, shown.tiling.of_image((row["image_height"], row["image_width"])))
    panes = [small_picture("image", image), small_picture("mask", overlay(image, mask, shown.palette))]
    if confidence is not None:
        panes.append(small_picture("doubt", _heat(image, confidence)))
    return tuple(panes)


def _with_borders(image: np.ndarray, tiles: Tiles) -> np.ndarray:
    """The image HxWx3 with white lines where one tile's decisions end and the next one's begin."""
    drawn = image.copy()
    height, width = (max(getattr(tile, axis).end for tile in tiles.tiles) for axis in ("down", "across"))
    for tile in tiles.tiles:
        row = round(tile.down.first * len(image) / height)
        column = round(tile.across.first * image.shape[1] / width)
        drawn[row : row + LINE * (row > 0)] = 255
        drawn[:, column : column + LINE * (column > 0)] = 255
    return drawn


def _n_pixels(row: dict[str, Any]) -> int:
    return int(row["image_height"] * row["image_width"])


def _drawn(
    row: dict[str, Any], image_range: ImageRange | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image, mask and, if there is one, confidence map, all of the same small size."""
    shape = (row["image_height"], row["image_width"])
    image = decode_scaled(_as_labelled(row), _n_pixels(row), (DRAWN_PIXELS, DRAWN_PIXELS), image_range)
    mask = read_mask(row["mask_uri"], row["mask_sha256"])
    if not (image.height, image.width) == mask.shape == shape:
        raise RunError(f"{row['mask_uri']} has another size than its image: label the image again")
    bilinear = Image.Resampling.BILINEAR
    small = _reduced(image.pixels, shape, bilinear), _reduced(mask, shape, Image.Resampling.NEAREST)
    if row["confidence_map_uri"] is None:
        return *small, None
    confidence = decode_mask(storage.read_bytes(row["confidence_map_uri"]), _n_pixels(row))
    return *small, _reduced(confidence, shape, bilinear)


def _reduced(pixels: np.ndarray, shape: tuple[int, int], filtered: Image.Resampling) -> np.ndarray:
    """What belongs to an image of this height and width, at the size it is drawn on."""
    scale = min(1.0, DRAWN_PIXELS / max(shape))
    height, width = (max(1, round(scale * side)) for side in shape)
    return np.asarray(Image.fromarray(pixels).resize((width, height), filtered))


def _as_labelled(row: dict[str, Any]) -> bytes:
    try:
        blob = storage.read(row["image_uri"], row["image_bytes"])
    except TooLargeError:
        blob = None
    if blob is None or blob.etag != row["image_etag"]:
        raise RunError(f"{row['image_uri']} was replaced since it was labelled: label it again")
    return blob.data


def _heat(image: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The image in grey, the redder the less sure: HxWx3 uint8 of confidence HxW, 0 to 255."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    doubt = 1 - confidence[..., None] / 255
    return ((1 - doubt) * grey + doubt * np.array([213.0, 94.0, 0.0])).astype(np.uint8)


def small_picture(title: str, pixels: np.ndarray) -> Picture:
    """HxWx3 uint8, scaled down to the size of a gallery, as a JPEG."""
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=QUALITY)
    return Picture(f"{title}.jpg", title, "", content.getvalue(), "image/jpeg")


def class_colours(classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each class and the CSS colour that its masks have in a gallery."""
    palette = class_palette(max(len(classes), 1)).tolist()  # an OUTPUT where all failed may know no class
    return tuple((name, hex_colour(colour)) for name, colour in zip(classes, palette, strict=False))
