"""Masks that people drew or confirmed under an OUTPUT, as more images to learn from."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.datasets import IGNORED, Dataset, list_samples, list_splits
from segpipe.errors import DatasetError, ImageError, NotFoundError
from segpipe.image_range import ImageRange
from segpipe.images import decode_image, decode_mask, pixel_digest
from segpipe.manifests.queues import Selected, read_selected
from segpipe.manifests.reviews import ITEM_ID
from segpipe.manifests.store import classes_of
from segpipe.manifests.views import open_views
from segpipe.redaction import redact
from segpipe.training.correction_weights import FinalMask, Population, stood_for
from segpipe.training.learnt_images import image_digests

logger = logging.getLogger(__name__)

FILE = "corrections.json"
READ_THREADS = 8

_FINAL_MASKS = """
    SELECT image_uri, image_etag, final_mask_uri, final_mask_sha256, item_id, model_id, audit,
        inclusion_probability
    FROM reviews WHERE final_mask_uri IS NOT NULL
    QUALIFY row_number() OVER (
        PARTITION BY image_uri, image_etag ORDER BY reviewed_at DESC, review_id DESC) = 1
    ORDER BY image_uri, image_etag"""
# Of images as they are now.
_POPULATIONS = """
    SELECT model_id, count(*) FILTER (decision = 'accepted') AS accepted,
        count(*) FILTER (decision = 'review') AS review,
        count(*) FILTER (decision = 'review' AND (chosen OR (decided AND drawn IS NOT TRUE))) AS taken
    FROM (
        SELECT * EXCLUDE (drawn), $item_id AS item_id
        FROM labels SEMI JOIN latest USING (image_uri, image_etag)
    )
    LEFT JOIN queued USING (item_id)
    LEFT JOIN (SELECT item_id, true AS decided FROM reviews) USING (item_id)
    GROUP BY model_id"""


@dataclass(frozen=True)
class Correction:
    """An image, in the version that was labelled, with its final mask.

    inclusion_probability: (0 to 1], 1 over the number of masks that it stands for (see correction_weights).
    Where the queues left no record of what they drew: the audit's share for audited masks, and 1 for what the
    policy sends to review, as if a person had seen all of it.
    """

    image_uri: str
    image_etag: str
    mask_uri: str
    mask_sha256: str
    inclusion_probability: float


@dataclass(frozen=True)
class _Mask:
    """A final mask and its image, in the version that was labelled."""

    image_uri: str
    image_etag: str
    mask_uri: str
    mask_sha256: str
    facts: FinalMask


@dataclass(frozen=True)
class _Reviewed:
    """The final masks of an OUTPUT, and what they can stand for; populations by model id."""

    output: str
    masks: tuple[_Mask, ...]
    populations: dict[str, Population]
    selected: Selected


def find_corrections(outputs: Iterable[str], dataset: Dataset) -> list[Correction]:
    """What can be learnt from under the OUTPUTs, sorted; says what is left out.

    Left out are images whose pixels any split of the data set holds (validation and calibration would no
    longer be unseen; what is trained on has a truth already) and images that were replaced or removed since.
    Raises DatasetError for other classes than the data set's, NotFoundError for no OUTPUT, StorageError.
    """
    reviewed = [_reviewed(storage.normalise(output), dataset) for output in outputs]
    found = [mask for one in reviewed for mask in one.masks]
    known = _pixels_of_all_splits(dataset)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        digests = list(pool.map(partial(_digest_of_image, image_range=dataset.image_range), found))
    gone = sum(digest is None for digest in digests)
    usable = {mask for mask, digest in zip(found, digests, strict=True) if digest and digest not in known}
    logger.info(
        "%d corrections to learn from; left out: %d that the data set holds, %d whose image was replaced or "
        "removed",
        len(usable),
        len(found) - gone - len(usable),
        gone,
    )
    if usable and not any(mask.facts.is_audit for mask in usable):
        logger.warning("no correction is of an audited image: hard images count more than in the bucket")
    return [correction for one in reviewed for correction in _weighed(one, usable)]


def weights(corrections: Sequence[Correction]) -> list[float]:
    """How often to learn from each: as the inverse of its inclusion probability, 1 on average.

    So the corrections as a body look like the bucket and not like its hard images. No weight is above the
    mean times the root of their number (Ionides 2008, "Truncated importance sampling"), so that a few audited
    images are not learnt by heart.
    """
    inverse = np.array([1 / one.inclusion_probability for one in corrections])
    if not len(inverse):
        return []
    truncated = np.minimum(inverse, inverse.mean() * math.sqrt(len(inverse)))
    return [float(weight) for weight in truncated / truncated.mean()]


def read_correction(correction: Correction, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Image (HxWx3 uint8) and mask (HxW uint8, class indices or the ignore index). Raises DatasetError."""
    image = _read_image(correction.image_uri, dataset.image_range)
    content = storage.read_bytes(correction.mask_uri)
    if hashlib.sha256(content).hexdigest() != correction.mask_sha256:
        raise DatasetError(
            f"{correction.mask_uri} is not the mask that was reviewed: it was changed; restore it"
        )
    mask = _decode(decode_mask, correction.mask_uri, content)
    mask = np.where(mask == IGNORED, np.uint8(dataset.ignore_index), mask)  # what a reviewer left open
    if mask.shape != image.shape[:2]:
        raise DatasetError(
            f"{correction.mask_uri} has not the size of its image {correction.image_uri}: remove it"
        )
    return image, mask


@contextmanager
def open_correction(correction: Correction, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `read_correction`, in the form of an open sample."""
    yield read_correction(correction, dataset)


def to_json(corrections: Sequence[Correction]) -> bytes:
    """What is kept beside a model, so that a resumed training learns from the same."""
    return json.dumps([asdict(correction) for correction in corrections], indent=1).encode()


def from_json(content: bytes) -> list[Correction]:
    """Undo `to_json`."""
    return [Correction(**fields) for fields in json.loads(content)]


def _reviewed(output: str, dataset: Dataset) -> _Reviewed:
    selected = read_selected(output)
    with open_views(output) as connection:
        connection.register("queued", selected.table())
        found = connection.sql(_FINAL_MASKS).to_arrow_table().to_pylist()
        counted = connection.sql(_POPULATIONS.replace("$item_id", ITEM_ID)).to_arrow_table().to_pylist()
    if found and (classes := classes_of(output)) != dataset.classes:
        raise DatasetError(
            f"{redact(output)} was labelled with the classes {', '.join(classes)}, the data set has "
            f"{', '.join(dataset.classes)}: use corrections of the same classes"
        )
    populations = {row.pop("model_id"): Population(**row) for row in counted}
    return _Reviewed(output, tuple(_mask(row) for row in found), populations, selected)


def _mask(row: dict[str, Any]) -> _Mask:
    facts = FinalMask(row["item_id"], row["model_id"], row["audit"], row["inclusion_probability"])
    return _Mask(row["image_uri"], row["image_etag"], row["final_mask_uri"], row["final_mask_sha256"], facts)


def _weighed(reviewed: _Reviewed, usable: Collection[_Mask]) -> list[Correction]:
    masks = [mask for mask in reviewed.masks if mask in usable]
    facts = [mask.facts for mask in masks]
    counts = stood_for(facts, reviewed.populations, reviewed.selected)
    if counts is None:
        counts = [1 / one.audit_share if one.is_audit else 1.0 for one in facts]
        if not all(one.is_audit for one in facts):
            logger.warning(
                "%s does not tell by which chance its doubtful masks were reviewed: corrections of them "
                "count once each, as if a person had seen them all; push with a --random-share above 0",
                redact(reviewed.output),
            )
    return [
        Correction(mask.image_uri, mask.image_etag, mask.mask_uri, mask.mask_sha256, 1 / count)
        for mask, count in zip(masks, counts, strict=True)
    ]


def _pixels_of_all_splits(dataset: Dataset) -> set[str]:
    samples = [sample for split in list_splits(dataset) for sample in list_samples(dataset, split)]
    return set(image_digests(dataset, samples))


def _digest_of_image(correction: _Mask, image_range: ImageRange | None) -> str | None:
    """Of the pixels that were labelled; None when the image is another now, or gone."""
    try:
        blob = storage.read(correction.image_uri)
    except NotFoundError:
        return None
    if blob.etag != correction.image_etag:
        return None
    return pixel_digest(
        _decode(partial(decode_image, image_range=image_range), correction.image_uri, blob.data)
    )


def _read_image(uri: str, image_range: ImageRange | None) -> np.ndarray:
    return _decode(partial(decode_image, image_range=image_range), uri, storage.read_bytes(uri))


def _decode(decode: Callable[[bytes], np.ndarray], uri: str, data: bytes) -> np.ndarray:
    try:
        return decode(data)
    except ImageError as error:
        raise DatasetError(f"{uri} cannot be used: {error}; replace or remove it") from error
