"""What people decided about masks: an append-only log of numbered Parquet parts under OUTPUT/reviews.

A part is created exclusively under the next number, after whoever writes it has read all before it. So of two
writers at once one reads again, and no decision is written twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

import pyarrow as pa

from segpipe import storage
from segpipe.concurrency import ordered_map
from segpipe.errors import AlreadyExistsError, StorageError
from segpipe.manifests.parts import list_parquet, rows_in, telling_damage
from segpipe.manifests.store import table_bytes

Verdict = Literal["accepted", "corrected", "rejected", "skipped"]

# Since 2 what was erased counts as wrong in draft_iou; before, it did not count. 3 added from_scratch,
# 4 final_class_pixels.
SCHEMA_VERSION = 4
FOLDER = "reviews"
_READERS = 16
_NEVER_NULL = ("review_id", "item_id", "image_uri", "model_id", "verdict", "reviewed_at")
_NUMBERED = re.compile(rf"{FOLDER}/(\d{{8}})\.parquet")
REVIEW_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("item_id", pa.string()),
        ("image_uri", pa.string()),
        ("image_etag", pa.string()),
        ("model_id", pa.string()),
        ("draft_mask_sha256", pa.string()),
        ("verdict", pa.string()),
        ("final_mask_uri", pa.string()),
        ("final_mask_sha256", pa.string()),
        ("draft_iou", pa.float64()),
        ("overlap_pixels", pa.int64()),
        ("audit", pa.bool_()),
        ("inclusion_probability", pa.float64()),
        ("reviewer", pa.string()),
        ("minutes", pa.float64()),
        ("reviewed_at", pa.timestamp("us", tz="UTC")),
        ("origin", pa.string()),
        ("draft_iou_graded", pa.float64()),
        ("from_scratch", pa.bool_()),
        ("final_class_pixels", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Review:
    """One decision about one mask, in the order of REVIEW_SCHEMA; None is null.

    review_id: digest of item, annotation and its last change, so that a changed one is a new decision;
    item_id: see `item_id`; final_mask: what the person wants, the draft when accepted, null when
    rejected or skipped; draft_iou and draft_iou_graded: mean IoU (0 to 1) of draft and final mask by the
    rules every_class and graded (see metrics), the draft being wrong where something was erased; the second
    is null in a decision of a version that did not know it; overlap_pixels: claimed by more than one region;
    audit, inclusion_probability: as in the manifest row; minutes spent; origin: where the annotation lives;
    from_scratch: the person drew without seeing the draft (null in a decision of a version that showed all);
    final_class_pixels: pixels of each of the model's classes in the final mask (null without one, and in a
    decision of a version that did not count them).
    Of several decisions about one item the one with the latest reviewed_at holds.
    """

    review_id: str
    item_id: str
    image_uri: str
    image_etag: str
    model_id: str
    draft_mask_sha256: str
    verdict: Verdict
    final_mask_uri: str | None
    final_mask_sha256: str | None
    draft_iou: float | None
    overlap_pixels: int
    audit: bool
    inclusion_probability: float
    reviewer: str | None
    minutes: float | None
    reviewed_at: datetime
    origin: str
    draft_iou_graded: float | None = None
    from_scratch: bool | None = None
    final_class_pixels: Sequence[int] | None = None


def item_id(image_uri: str, image_etag: str, model_id: str, mask_sha256: str) -> str:
    """The name of what a person is asked: this mask for this version of this image (32 hex digits)."""
    return hashlib.sha256("\n".join((image_uri, image_etag, model_id, mask_sha256)).encode()).hexdigest()[:32]


# The same in SQL, of a manifest row.
ITEM_ID = "left(sha256(concat_ws(chr(10), image_uri, image_etag, model_id, mask_sha256)), 32)"


def append_reviews(output: str, reviews: Iterable[Review]) -> list[Review]:
    """Add the decisions that the log does not have yet; returns those added. Raises StorageError."""
    candidates = {review.review_id: review for review in reviews}
    while True:
        parts = _parts(output)
        known = _known_ids(output, parts)
        new = [review for name, review in candidates.items() if name not in known]
        if not new:
            return []
        try:
            storage.create(storage.join(output, f"{FOLDER}/{_next_number(parts):08d}.parquet"), _bytes(new))
        except AlreadyExistsError:
            continue  # another writer was quicker: look at what it has written
        return new


def known_review_ids(output: str) -> set[str]:
    """The names of all decisions that the log of OUTPUT has. StorageError, also for a damaged part."""
    return _known_ids(output, _parts(output))


def read_reviews(output: str) -> pa.Table:
    """All decisions of OUTPUT as a table of REVIEW_SCHEMA; people make few. StorageError, also for damage."""
    return _read(output, _parts(output))


def review_parts(output: str) -> Iterator[tuple[str, pa.Table | StorageError]]:
    """Each part's key below OUTPUT and its rows, or how it is damaged. StorageError."""
    for key, content in _contents(output, _parts(output)):
        try:
            yield key, _rows(key, content)
        except StorageError as error:
            yield key, error


def _read(output: str, parts: list[str]) -> pa.Table:
    tables = [_rows(storage.join(output, key), content) for key, content in _contents(output, parts)]
    return pa.concat_tables([REVIEW_SCHEMA.empty_table(), *tables])


def _contents(output: str, parts: list[str]) -> Iterator[tuple[str, bytes]]:
    def read(key: str) -> tuple[str, bytes]:
        return key, storage.read_bytes(storage.join(output, key))

    with ThreadPoolExecutor(_READERS) as pool:
        yield from ordered_map(pool, read, parts, 2 * _READERS)


def _rows(part: str, content: bytes) -> pa.Table:
    with telling_damage(part, "remove it and pull again"):
        return rows_in(content, REVIEW_SCHEMA, _NEVER_NULL)


def _parts(output: str) -> list[str]:
    listed = list_parquet(storage.join(output, FOLDER))
    return [f"{FOLDER}/{part.key}" for part in listed if "/" not in part.key]


def _next_number(parts: list[str]) -> int:
    """After the highest, so that a part that was taken away leaves no number to be tried again for ever."""
    numbers = [int(found[1]) for part in parts if (found := _NUMBERED.fullmatch(part))]
    return max(numbers, default=0) + 1


def _known_ids(output: str, parts: list[str]) -> set[str]:
    return set(_read(output, parts)["review_id"].to_pylist())


def _bytes(reviews: list[Review]) -> bytes:
    schema = REVIEW_SCHEMA.with_metadata({"segpipe.schema_version": str(SCHEMA_VERSION)})
    return table_bytes(pa.Table.from_pylist([asdict(review) for review in reviews], schema=schema))
