"""What people should look at next: doubtful masks, and the audits hidden among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from segpipe import storage
from segpipe.config import QueueSettings
from segpipe.errors import AlreadyExistsError, RunError
from segpipe.manifests.queues import Selection, add_selection, read_selected
from segpipe.manifests.store import classes_of
from segpipe.manifests.views import open_views
from segpipe.redaction import redact
from segpipe.review.draw import Order, choose_doubtful
from segpipe.review.queue_item import QueueItem, queue_item

MINUTES_AT_FIRST = 2.0  # per mask, until there are reviews that say how long one takes

_MINUTES = "SELECT median(minutes) FROM reviews WHERE minutes > 0"
_WAITING = "SELECT count(*) FROM review_queue"
# What is drawn counts in the order in which it was labelled, up to the oldest open one: so the oldest come
# first, and what was drawn of the doubtful masks beside what was drawn of the accepted ones.
_AUDITS = """
    SELECT image_uri, image_etag, model_id, mask_uri, mask_sha256, confidence, audit, from_scratch
    FROM review_queue WHERE audit OR drawn IS TRUE
    ORDER BY labeled_at, run_id, shard, image_uri LIMIT $limit"""
_LOWEST_CONFIDENCE = "confidence NULLS FIRST"
# Of each class its share of the pixels, as far as its label is doubtful: the expected share of wrong pixels.
_MOST_WRONG_PIXELS = """
    list_sum(list_transform(list_zip(class_fractions, class_confidences),
        lambda one: one[1] * (1 - coalesce(one[2], 0)))) DESC NULLS FIRST"""


@dataclass(frozen=True)
class Queue:
    """What to look at, in this order; waiting: all without a decision; minutes: what these will take."""

    items: tuple[QueueItem, ...]
    waiting: int
    minutes: float


@dataclass(frozen=True)
class _Proposed:
    """A queue, and what it would add, under this number, to what was selected before."""

    queue: Queue
    number: int
    selection: Selection


def make_queue(output: str, settings: QueueSettings) -> Queue:
    """The masks under OUTPUT that fit the budget.

    All open audits and other masks drawn blind to the score that do, oldest first, and then doubtful masks: a
    share drawn at random, the others in the order asked for. Audits and draws stand among the others at
    places that say nothing. The same queue for all who ask, until a push records it or a decision comes.
    Raises NotFoundError, StorageError, RunError for an unknown class.
    """
    return _propose(storage.normalise(output), settings).queue


def take_queue(output: str, settings: QueueSettings) -> Queue:
    """As make_queue, with a record of what was chosen and drawn, written before anyone is asked."""
    output = storage.normalise(output)
    while True:
        proposed = _propose(output, settings)
        if not (proposed.selection.drawn or proposed.selection.chosen):
            return proposed.queue
        try:
            add_selection(output, proposed.number, proposed.selection)
        except AlreadyExistsError:
            continue  # another push was quicker: what it has drawn is drawn
        return proposed.queue


def _propose(output: str, settings: QueueSettings) -> _Proposed:
    selected = read_selected(output)
    order = _order(output, settings)
    with open_views(output) as connection:
        minutes_each = _minutes_each(connection)
        limit = _limit(settings, minutes_each)
        audits = _audits(connection, limit)
        room = limit - len(audits)
        doubtful = choose_doubtful(connection, selected, order, room, settings.random_share)
        (waiting,) = connection.sql(_WAITING).fetchall()[0]
    items = mixed([*audits, *doubtful.drawn], doubtful.chosen)
    queue = Queue(tuple(items), waiting, len(items) * minutes_each)
    return _Proposed(queue, selected.next_number, doubtful.selection)


def mixed(hidden: Sequence[QueueItem], others: Sequence[QueueItem]) -> list[QueueItem]:
    """Both in one row, each in its own order; who stands where is drawn by a digest of the items."""
    items = [*hidden, *others]
    places = sorted(range(len(items)), key=lambda place: _draw(items[place], place))
    of_hidden = set(places[: len(hidden)])
    remaining = {True: iter(hidden), False: iter(others)}
    return [next(remaining[place in of_hidden]) for place in range(len(items))]


def _draw(item: QueueItem, place: int) -> bytes:
    return hashlib.sha256(f"segpipe.queue\n{item.item_id}\n{place}".encode()).digest()


def _minutes_each(connection: duckdb.DuckDBPyConnection) -> float:
    (found,) = connection.sql(_MINUTES).fetchall()[0]
    return MINUTES_AT_FIRST if found is None else float(found)


def _limit(settings: QueueSettings, minutes_each: float) -> int:
    fits = settings.limit if settings.minutes is None else int(settings.minutes / minutes_each)
    return min(fits, settings.limit)


def _audits(connection: duckdb.DuckDBPyConnection, limit: int) -> list[QueueItem]:
    rows = connection.sql(_AUDITS.replace("$limit", str(limit))).to_arrow_table().to_pylist()
    return [queue_item(row) for row in rows]


def _order(output: str, settings: QueueSettings) -> Order:
    if settings.class_name is None:
        return Order("true", {"confidence": _LOWEST_CONFIDENCE, "gain": _MOST_WRONG_PIXELS}[settings.order])
    place = _class_place(output, settings.class_name)
    doubt = f"class_fractions[{place}] * (1 - coalesce(class_confidences[{place}], 0))"
    return Order(f"coalesce(class_fractions[{place}] > 0, false)", f"{doubt} DESC")


def _class_place(output: str, name: str) -> int:
    """Counted from 1, as SQL does."""
    classes = classes_of(output)
    if name not in classes:
        raise RunError(f"no class {name!r} under {redact(output)}: there are {', '.join(classes)}")
    return classes.index(name) + 1
