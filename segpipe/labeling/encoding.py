"""From a judged image to its mask, and to the files and the row it will have; or failed with a reason."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.errors import SegpipeError
from segpipe.images import encode_confidence_map, encode_mask
from segpipe.labeling.items import EncodedImage, FailedImage, File, FinishedImage, ImageLabeler, JudgedImage
from segpipe.labeling.legs import Legs
from segpipe.labeling.rows import Target, labelled_row

if TYPE_CHECKING:
    from segpipe.models.labeler import Labeled


def finish_image(item: JudgedImage, labeler: ImageLabeler) -> FinishedImage | FailedImage:
    """Make the mask at the image's own size."""
    started = perf_counter()
    try:
        labeled = labeler.finish(item.judged, item.height, item.width)
        _require_size(labeled, item)
    except SegpipeError:
        raise
    except Exception as error:
        legs = item.legs + Legs(infer=perf_counter() - started)
        return FailedImage(item.seen, item.height, item.width, "inference", error, legs)
    legs = item.legs + Legs(infer=perf_counter() - started)
    return FinishedImage(item.seen, item.height, item.width, labeled, legs)


def encode_image(item: FinishedImage, target: Target) -> EncodedImage:
    """The files and the row of a finished image. Raises PolicyError for another model's policy."""
    started = perf_counter()
    mask, confidence_map = _encode_mask(item, target), _encode_map(item, target)
    row = labelled_row(item, target, mask, confidence_map)
    files = (mask,) if confidence_map is None else (mask, confidence_map)
    legs = item.legs + Legs(encode=perf_counter() - started)
    return EncodedImage(item.seen, item.height, item.width, files, row, legs)


def _require_size(labeled: Labeled, item: JudgedImage) -> None:
    if labeled.mask.shape != (item.height, item.width):
        raise ValueError(
            f"the model gave a mask of size {labeled.mask.shape} for an image of {item.height, item.width}"
        )


def _encode_mask(item: FinishedImage, target: Target) -> File:
    uri = storage.join(target.masks_root, item.seen.planned.mask_key)
    return File(uri, encode_mask(item.labeled.mask, target.palette))


def _encode_map(item: FinishedImage, target: Target) -> File | None:
    if target.confidence_maps_root is None:
        return None
    uri = storage.join(target.confidence_maps_root, item.seen.planned.mask_key)
    return File(uri, encode_confidence_map(item.labeled.confidence_map, item.height, item.width))
