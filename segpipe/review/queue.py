"""What people should look at next: doubtful masks by what a minute buys, and the audits hidden among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segpipe import storage
from segpipe.config import QueueSettings
from segpipe.errors import RunError
from segpipe.manifests.query import query
from segpipe.manifests.reviews import item_id
from segpipe.manifests.store import classes_of
from segpipe.redaction import redact

MINUTES_AT_FIRST = 2.0  # per mask, until there are reviews that say how long one takes

_MINUTES = "SELECT median(minutes) AS minutes FROM reviews WHERE minutes > 0"
# Audits count in the order in which they were labelled, up to the oldest open one: so the oldest come first.
_AUDITS = """
    SELECT image_uri, image_etag, model_id, mask_uri, mask_sha256, confidence, audit
    FROM review_queue WHERE audit
    ORDER BY labeled_at, run_id, shard, image_uri LIMIT $limit"""
_DOUBTFUL = """
    SELECT image_uri, image_etag, model_id, mask_uri, mask_sha256, confidence, audit
    FROM review_queue WHERE NOT audit AND $chosen
    ORDER BY $order, image_uri LIMIT $limit"""
_LOWEST_CONFIDENCE = "confidence NULLS FIRST"
# Of each class its share of the pixels, as far as its label is doubtful: the expected share of wrong pixels.
_MOST_WRONG_PIXELS = """
    list_sum(list_transform(list_zip(class_fractions, class_confidences),
        lambda one: one[1] * (1 - coalesce(one[2], 0)))) DESC NULLS FIRST"""


@dataclass(frozen=True)
class QueueItem:
    """A mask to look at. is_audit is for whoever keeps count, never for the reviewer."""

    item_id: str
    image_uri: str
    mask_uri: str
    mask_sha256: str
    model_id: str
    confidence: float | None
    is_audit: bool


@dataclass(frozen=True)
class Queue:
    """What to look at, in this order; waiting: all without a decision; minutes: what these will take."""

    items: tuple[QueueItem, ...]
    waiting: int
    minutes: float


def make_queue(output: str, settings: QueueSettings) -> Queue:
    """The masks under OUTPUT that fit the budget.

    All open audits that do, oldest first, and then doubtful masks in the order asked for; the audits stand
    among them at places that say nothing. Raises NotFoundError, StorageError, RunError for an unknown class.
    """
    output = storage.normalise(output)
    minutes_each = _minutes_each(output)
    limit = _limit(settings, minutes_each)
    audits = _items(output, _AUDITS.replace("$limit", str(limit)))
    doubtful = _items(output, _doubtful(output, settings, limit - len(audits)))
    items = mixed(audits, doubtful)
    (counted,) = query(output, "SELECT count(*) AS waiting FROM review_queue").to_pylist()
    return Queue(tuple(items), counted["waiting"], len(items) * minutes_each)


def mixed(audits: Sequence[QueueItem], doubtful: Sequence[QueueItem]) -> list[QueueItem]:
    """Both in one row, each in its own order; who stands where is drawn by a digest of the items."""
    total = len(audits) + len(doubtful)
    places = sorted(range(total), key=lambda place: _draw([*audits, *doubtful][place], place))
    of_audits = set(places[: len(audits)])
    remaining = {True: iter(audits), False: iter(doubtful)}
    return [next(remaining[place in of_audits]) for place in range(total)]


def _draw(item: QueueItem, place: int) -> bytes:
    return hashlib.sha256(f"segpipe.queue\n{item.item_id}\n{place}".encode()).digest()


def _minutes_each(output: str) -> float:
    (found,) = query(output, _MINUTES).to_pylist()
    return MINUTES_AT_FIRST if found["minutes"] is None else float(found["minutes"])


def _limit(settings: QueueSettings, minutes_each: float) -> int:
    fits = settings.limit if settings.minutes is None else int(settings.minutes / minutes_each)
    return min(fits, settings.limit)


def _doubtful(output: str, settings: QueueSettings, limit: int) -> str:
    order, chosen = {"confidence": _LOWEST_CONFIDENCE, "gain": _MOST_WRONG_PIXELS}[settings.order], "true"
    if settings.class_name is not None:
        place = _class_place(output, settings.class_name)
        chosen = f"class_fractions[{place}] > 0"
        order = f"class_fractions[{place}] * (1 - coalesce(class_confidences[{place}], 0)) DESC"
    return _DOUBTFUL.replace("$chosen", chosen).replace("$order", order).replace("$limit", str(limit))


def _class_place(output: str, name: str) -> int:
    """Counted from 1, as SQL does."""
    classes = classes_of(output)
    if name not in classes:
        raise RunError(f"no class {name!r} under {redact(output)}: there are {', '.join(classes)}")
    return classes.index(name) + 1


def _items(output: str, sql: str) -> list[QueueItem]:
    return [_item(row) for row in query(output, sql).to_pylist()]


def _item(row: dict[str, Any]) -> QueueItem:
    name = item_id(row["image_uri"], row["image_etag"], row["model_id"], row["mask_sha256"])
    return QueueItem(
        name,
        row["image_uri"],
        row["mask_uri"],
        row["mask_sha256"],
        row["model_id"],
        row["confidence"],
        row["audit"],
    )
