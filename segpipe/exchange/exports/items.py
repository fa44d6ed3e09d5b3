"""What is exported: each accepted image with its final mask, as it was labelled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.concurrency import Budget, ordered_map
from segpipe.errors import ImageError, NotFoundError
from segpipe.exchange.files import COPIED
from segpipe.image_headers import has_16_bits
from segpipe.image_range import ImageRange
from segpipe.images import (
    MAX_PIXELS,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    is_plain,
    open_image,
)
from segpipe.manifests.run_range import range_of_run
from segpipe.manifests.views import open_views
from segpipe.redaction import redact

READ_THREADS = 8
READ_AHEAD = 16
STEM_CHARACTERS = 60
_NO_PIXELS = np.zeros((0, 0), np.uint8)
_ACCEPTED = """
    SELECT image_uri, image_etag, image_width, image_height, mask_uri, mask_sha256, run_id
    FROM accepted ORDER BY image_uri, image_etag"""


@dataclass(frozen=True)
class Item:
    """An image and its mask. key: unique, safe in every file system; image: a JPEG or PNG file as displayed
    and as the model saw it, `extension` says which; mask: HxW uint8 class indices, 255 where nobody knows."""

    key: str
    image_uri: str
    image_etag: str
    mask_sha256: str
    extension: str
    image: bytes
    mask: np.ndarray

    def without_pixels(self) -> Item:
        """The same, small enough to keep millions of."""
        return replace(self, image=b"", mask=_NO_PIXELS)


@dataclass(frozen=True)
class LeftOut:
    """An accepted image that is not exported, and why."""

    image_uri: str
    image_etag: str
    reason: str


@dataclass(frozen=True)
class Target:
    """Where a data set goes and what its masks mean; palette: Kx3 uint8."""

    root: str
    split: str
    classes: tuple[str, ...]
    palette: np.ndarray

    def put(self, name: str, content: bytes | str) -> None:
        """Write one file of the data set. StorageError."""
        storage.put(
            storage.join(self.root, name), content if isinstance(content, bytes) else content.encode()
        )

    def encoded(self, item: Item) -> bytes:
        """The item's mask as an indexed PNG in the colours of the palette."""
        return encode_mask(item.mask, self.palette)


def accepted_items(output: str) -> Iterator[Item | LeftOut]:
    """The view `accepted`, sorted by image, a bounded number at a time.

    Left out are images and masks that are not there any more, images that were replaced since and those that
    cannot be read, masks that are not the manifest's. Raises NotFoundError, StorageError, RunError.
    """
    read = partial(_read, budget=Budget(MAX_PIXELS), range_of=cache(partial(range_of_run, output)))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from ordered_map(pool, read, _rows(output), READ_AHEAD)


def _rows(output: str) -> Iterator[dict[str, Any]]:
    with open_views(output) as connection:
        for batch in connection.sql(_ACCEPTED).to_arrow_reader(1000):
            yield from batch.to_pylist()


def _read(
    row: dict[str, Any], budget: Budget, range_of: Callable[[str], ImageRange | None]
) -> Item | LeftOut:
    uri, etag = row["image_uri"], row["image_etag"]
    try:
        blob = storage.read(uri)
        if blob.etag != etag:
            return LeftOut(uri, etag, "it was replaced since it was labelled")
        pixels = _pixels_labelled(row)
        with budget.held(pixels):
            image, extension = _as_labelled(blob.data, pixels, range_of(row["run_id"]))
            mask = _mask(row, pixels)
    except NotFoundError as error:
        return LeftOut(uri, etag, f"it is not there any more ({error})")
    except ImageError as error:
        return LeftOut(uri, etag, str(error))
    return Item(_key(uri, etag), uri, etag, row["mask_sha256"], extension, image, mask)


def _pixels_labelled(row: dict[str, Any]) -> int:
    """What the run that labelled it allowed at least, whatever its --max-image-pixels was."""
    return max(MAX_PIXELS, (row["image_width"] or 0) * (row["image_height"] or 0))


def _mask(row: dict[str, Any], max_pixels: int) -> np.ndarray:
    content = storage.read_bytes(row["mask_uri"])
    if hashlib.sha256(content).hexdigest() != row["mask_sha256"]:
        raise ImageError(
            "unreadable", f"{redact(row['mask_uri'])} is not the mask of the manifest: restore it"
        )
    return decode_mask(content, max_pixels)


def _key(uri: str, etag: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(uri).stem)[:STEM_CHARACTERS].strip("_") or "image"
    identity = hashlib.sha256("\0".join((uri, etag)).encode()).hexdigest()
    return f"{stem}-{identity[:12]}"


def _as_labelled(data: bytes, max_pixels: int, image_range: ImageRange | None) -> tuple[bytes, str]:
    """The file itself where every reader shows it as the model saw it, else its pixels as PNG."""
    image = open_image(data, max_pixels)
    kept = COPIED.get(image.format or "") if image_range is None and not has_16_bits(image) else None
    if kept and image.mode in ("RGB", "L") and is_plain(image, data):
        return data, kept
    return encode_image(decode_image(data, max_pixels, image_range)), ".png"
