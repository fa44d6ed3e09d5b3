"""Masks as drafts for people: one Label Studio task per queue item."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.errors import ArchivedError, DeniedError, ImageError, NotFoundError, ReviewError
from segpipe.images import decode_mask
from segpipe.review.brush import encode_brush
from segpipe.review.label_config import BRUSH, IMAGE
from segpipe.review.queue_item import QueueItem
from segpipe.review.tasks import FROM_SCRATCH, ITEM_ID

# Label Studio and browsers cut blanks off the ends of an address, and drop control characters from it.
_CHANGED_ON_THE_WAY = re.compile(r"[\x00-\x1f\x7f-\x9f]|^\s|\s\Z")
_SHOWN_FROM = ("s3://", "https://", "http://")


def why_not_shown(image_uri: str) -> str | None:
    """What keeps Label Studio from showing an image; None: nothing does."""
    if not image_uri.startswith(_SHOWN_FROM):
        return "Label Studio needs images in S3 or on the web"
    if image_uri.startswith("s3://") and "?" in image_uri:
        return "Label Studio cuts its key at the question mark: give the object another name"
    if re.match(r"s3://[^/]*//", image_uri):
        return "Label Studio takes the slash at its start for none: give the object another name"
    if _CHANGED_ON_THE_WAY.search(image_uri):
        return "its key has a control character, or a blank at its end: give the object another name"
    return None


def draft_task(item: QueueItem, classes: Sequence[str], *, with_score: bool) -> dict[str, Any]:
    """The task for one item, with its mask as the draft, or with none to draw it from scratch.

    The audit flag is not in it.
    Raises ReviewError where Label Studio would take it and show nonsense: another mask than the manifest's,
    classes that the project lacks; StorageError.
    """
    mask = read_draft(item.mask_uri, item.mask_sha256, len(classes))
    data = {"image": item.image_uri, ITEM_ID: item.item_id}
    if item.from_scratch:
        return {"data": data | {FROM_SCRATCH: True}}
    score = {"score": item.confidence} if with_score and _is_score(item.confidence) else {}
    draft = {"model_version": item.model_id, "result": list(_regions(mask, classes))} | score
    return {"data": data, "predictions": [draft]}


def _is_score(confidence: float | None) -> bool:
    """Whether JSON and Label Studio have a place for it."""
    return confidence is not None and math.isfinite(confidence) and 0 <= confidence <= 1


def read_draft(uri: str, sha256: str, n_classes: int) -> np.ndarray:
    """As `read_mask`; ReviewError too for a mask with a class that is none of the n_classes."""
    mask = read_mask(uri, sha256)
    if mask.max() >= n_classes:
        raise ReviewError(f"{uri} holds class {mask.max()} of {n_classes}: label the image again")
    return mask


def read_mask(uri: str, sha256: str) -> np.ndarray:
    """The mask (HxW uint8) of a manifest row.

    Raises ReviewError (it is another, gone, denied, archived, damaged or too large), StorageError.
    """
    try:
        content = storage.read_bytes(uri)
    except NotFoundError as error:
        raise ReviewError(f"{uri} is not there any more: restore it, or label the image again") from error
    except (DeniedError, ArchivedError) as error:  # of this object alone: the others may be read
        raise ReviewError(str(error)) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ReviewError(f"{uri} is not the mask of the manifest: it was changed; restore it")
    try:
        return decode_mask(content)
    except ImageError as error:
        raise ReviewError(f"{uri} cannot be read: {error}") from error


def _regions(mask: np.ndarray, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    height, width = mask.shape
    for index in np.unique(mask).tolist():
        yield {
            "id": f"class-{index}",
            "type": "brushlabels",
            "from_name": BRUSH,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(mask == index),
                "brushlabels": [classes[index]],
            },
        }
