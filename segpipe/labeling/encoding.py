"""From a judged image to the files and the row it will have, or failed with a reason."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.errors import SegpipeError
from segpipe.images import encode_confidence_map, encode_mask
from segpipe.labeling.items import EncodedImage, FailedImage, File, ImageLabeler, JudgedImage
from segpipe.labeling.legs import Legs
from segpipe.labeling.rows import Target, labelled_row

if TYPE_CHECKING:
    from segpipe.models.labeler import Labeled


def encode_image(
    item: JudgedImage | FailedImage, labeler: ImageLabeler, target: Target
) -> EncodedImage | FailedImage:
    """Make the mask at the image's own size and encode it; what failed before stays as it is.

    Raises PolicyError for another model's policy.
    """
    if isinstance(item, FailedImage):
        return item
    started = perf_counter()
    try:
        labeled = _finish(item, labeler)
    except SegpipeError:
        raise
    except Exception as error:
        legs = item.legs + Legs(infer=perf_counter() - started)
        return FailedImage(item.seen, item.height, item.width, "inference", error, legs)
    finished = perf_counter()
    mask, confidence_map = _encode_mask(item, labeled, target), _encode_map(item, labeled, target)
    row = labelled_row(item, labeled, target, mask, confidence_map)
    files = (mask,) if confidence_map is None else (mask, confidence_map)
    legs = item.legs + Legs(infer=finished - started, encode=perf_counter() - finished)
    return EncodedImage(item.seen, item.height, item.width, files, row, legs)


def _finish(item: JudgedImage, labeler: ImageLabeler) -> Labeled:
    labeled = labeler.finish(item.judged, item.height, item.width)
    if labeled.mask.shape != (item.height, item.width):
        raise ValueError(
            f"the model gave a mask of size {labeled.mask.shape} for an image of {item.height, item.width}"
        )
    return labeled


def _encode_mask(item: JudgedImage, labeled: Labeled, target: Target) -> File:
    uri = storage.join(target.masks_root, item.seen.planned.mask_key)
    return File(uri, encode_mask(labeled.mask, target.palette))


def _encode_map(item: JudgedImage, labeled: Labeled, target: Target) -> File | None:
    if target.confidence_maps_root is None:
        return None
    uri = storage.join(target.confidence_maps_root, item.seen.planned.mask_key)
    return File(uri, encode_confidence_map(labeled.confidence_map, item.height, item.width))
