"""What is exported: each accepted image with its final mask, as it was labelled."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from segpipe import storage
from segpipe.concurrency import ordered_map
from segpipe.errors import NotFoundError, RunError
from segpipe.images import decode_image, decode_mask
from segpipe.manifests.query import open_views
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

READ_THREADS = 8
READ_AHEAD = 16
STEM_CHARACTERS = 60
IGNORED = 255
_NO_PIXELS = np.zeros((0, 0), np.uint8)
_ORIENTATION = 0x0112  # the EXIF tag
_KEPT = {"JPEG": ".jpg", "PNG": ".png"}
_ACCEPTED = """
    SELECT image_uri, image_etag, mask_uri, mask_sha256 FROM accepted ORDER BY image_uri, image_etag"""


@dataclass(frozen=True)
class Item:
    """An image and its mask. key: unique, safe in every file system; image: a JPEG or PNG file as displayed,
    `extension` says which; mask: HxW uint8 class indices, 255 where nobody knows."""

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


def accepted_items(output: str) -> Iterator[Item]:
    """The view `accepted`, sorted by image, a bounded number at a time.

    Images that were replaced or removed since are left out and logged. Raises NotFoundError, StorageError,
    and RunError for a mask that is not the one of the manifest.
    """
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for item in ordered_map(pool, _read, _rows(output), READ_AHEAD):
            if item is not None:
                yield item


def index_csv(items: Iterable[Item]) -> str:
    """Which file is which image: key, image_uri, image_etag, mask_sha256."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "image_uri", "image_etag", "mask_sha256"))
    writer.writerows((item.key, item.image_uri, item.image_etag, item.mask_sha256) for item in items)
    return text.getvalue()


def _rows(output: str) -> Iterator[dict[str, Any]]:
    with open_views(output) as connection:
        for batch in connection.sql(_ACCEPTED).to_arrow_reader(1000):
            yield from batch.to_pylist()


def _read(row: dict[str, Any]) -> Item | None:
    uri, etag = row["image_uri"], row["image_etag"]
    try:
        blob = storage.read(uri)
    except NotFoundError:
        logger.warning("%s is left out: it is not there any more", redact(uri))
        return None
    if blob.etag != etag:
        logger.warning("%s is left out: it was replaced since it was labelled", redact(uri))
        return None
    image, extension = _as_displayed(blob.data)
    return Item(_key(uri, etag), uri, etag, row["mask_sha256"], extension, image, _mask(row))


def _mask(row: dict[str, Any]) -> np.ndarray:
    content = storage.read_bytes(row["mask_uri"])
    if hashlib.sha256(content).hexdigest() != row["mask_sha256"]:
        raise RunError(f"{redact(row['mask_uri'])} is not the mask of the manifest: restore it")
    return decode_mask(content)


def _key(uri: str, etag: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(uri).stem)[:STEM_CHARACTERS].strip("_") or "image"
    identity = hashlib.sha256("\0".join((uri, etag)).encode()).hexdigest()
    return f"{stem}-{identity[:12]}"


def _as_displayed(data: bytes) -> tuple[bytes, str]:
    """The file itself where every reader shows it as people see it, else its pixels as PNG."""
    with Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        if image.format in _KEPT and not turned and image.mode in ("RGB", "L"):
            return data, _KEPT[image.format]
    return png(decode_image(data)), ".png"


def png(pixels: np.ndarray) -> bytes:
    """HxWx3 uint8 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()
