"""A judged image to its stored mask and its row."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.errors import SegpipeError, StorageError
from segpipe.images import encode_confidence_map, encode_mask
from segpipe.labeling.items import FailedImage, ImageLabeler, JudgedImage, Outcome
from segpipe.labeling.legs import Legs
from segpipe.labeling.rows import File, Target, failed_row, labelled_row

if TYPE_CHECKING:
    from segpipe.manifests.schema import FailureReason
    from segpipe.models.labeler import Labeled


def write_image(item: JudgedImage | FailedImage, labeler: ImageLabeler, target: Target) -> Outcome:
    """Make the mask, store it and give its row; what fails becomes a failed row.

    Raises what require_claim raises, and PolicyError.
    """
    if isinstance(item, FailedImage):
        return _failed_outcome(item, target)
    started = perf_counter()
    try:
        labeled = _finish(item, labeler)
    except SegpipeError:
        raise
    except Exception as error:
        legs = item.legs + Legs(infer=perf_counter() - started)
        return _failed_outcome(_without_mask(item, "inference", error, legs), target)
    finished = perf_counter()
    mask, confidence_map = _encode_mask(item, labeled, target), _encode_map(item, labeled, target)
    encoded = perf_counter()
    timed = item.legs + Legs(infer=finished - started, encode=encoded - finished)
    target.require_claim()
    try:
        for file in (mask, confidence_map):
            if file is not None:
                storage.put(file.uri, file.data)
    except StorageError as error:
        legs = timed + Legs(write=perf_counter() - encoded)
        return _failed_outcome(_without_mask(item, "storage", error, legs), target)
    legs = timed + Legs(write=perf_counter() - encoded)
    return Outcome(labelled_row(item, labeled, target, mask, confidence_map), legs, None)


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


def _without_mask(item: JudgedImage, reason: FailureReason, error: Exception, legs: Legs) -> FailedImage:
    return FailedImage(item.seen, item.height, item.width, reason, error, legs)


def _failed_outcome(item: FailedImage, target: Target) -> Outcome:
    return Outcome(failed_row(item, target), item.legs, item.error)
