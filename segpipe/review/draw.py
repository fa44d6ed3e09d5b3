"""Which doubtful masks are asked about: some by the order asked for, some at random by a known chance.

The order chooses as if nothing had been drawn: it ranks masks that came by chance, decided or not, among the
others, and says of each whether its turn has come. So who is chosen by order does not depend on the draws:
the chosen are a stratum of their own that is taken whole, and the draws are a random sample of all the rest.
What that is for: segpipe.training.correction_weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from segpipe.manifests.queues import Frame, Selected, Selection, by_run
from segpipe.manifests.reviews import ITEM_ID
from segpipe.review.queue_item import QueueItem, queue_item

_MASKS = """
    CREATE TEMP VIEW doubtful AS
    SELECT named.*, coalesce(q.drawn, false) AS drawn, coalesce(q.chosen, false) AS chosen
    FROM (
        SELECT * EXCLUDE (drawn), verdict IS NULL AND final_mask_uri IS NULL AS waiting,
            $item_id AS item_id
        FROM reviewed WHERE decision = 'review' AND NOT audit AND drawn IS NOT TRUE
    ) named
    LEFT JOIN queued q USING (item_id)"""
_COUNTS = """
    SELECT count(*) FILTER (waiting AND $matches) AS matching,
        count(*) FILTER (drawn AND NOT waiting) AS decided
    FROM doubtful"""
_OPEN_DRAWS = "SELECT * FROM doubtful WHERE waiting AND drawn"
_BY_ORDER = """
    SELECT * FROM doubtful WHERE $matches AND (waiting OR (drawn AND NOT chosen))
    ORDER BY $order, image_uri LIMIT $limit"""
_REST = "FROM doubtful ANTI JOIN just_chosen USING (item_id) WHERE waiting AND NOT chosen AND NOT drawn"
_FRAMES = f"SELECT model_id, count(*) AS waiting {_REST} GROUP BY model_id"
_DRAW = f"""
    SELECT * {_REST}
    ORDER BY sha256(concat_ws(chr(10), 'segpipe.queue.draw', $number, item_id)) LIMIT $limit"""
_PARTS = "SELECT DISTINCT run_id, shard FROM labels WHERE decision = 'review'"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Order:
    """SQL: which doubtful masks are asked for, and which of them come first."""

    matches: str
    by: str


@dataclass(frozen=True)
class Doubtful:
    """The masks drawn at random and those chosen by order, each once, and what is new about that."""

    drawn: list[QueueItem]
    chosen: list[QueueItem]
    selection: Selection


@dataclass(frozen=True)
class _Chosen:
    """Rows that take a place in the queue, and the ids of all whose turn has come."""

    shown: Rows
    ids: list[str]


def places_at_random(room: int, matching: int, share: float) -> int:
    """How many of `room` places go to masks drawn at random.

    `matching` masks wait that the order asks for. Where not all of them fit, a share `share` (0 to 1) of the
    places; where they do, as many as make up that share of the queue.
    """
    if share == 1 or matching > room:
        return round(share * room)
    return min(room - matching, round(matching * share / (1 - share)))


def choose_doubtful(
    connection: duckdb.DuckDBPyConnection, selected: Selected, order: Order, room: int, share: float
) -> Doubtful:
    """The doubtful masks for `room` places, over the views of an OUTPUT.

    Masks drawn before and not yet decided come first among those at random, in the order of their draws.
    """
    connection.register("queued", selected.table())
    connection.execute(_MASKS.replace("$item_id", ITEM_ID))
    (counts,) = _rows(connection, _COUNTS.replace("$matches", order.matches))
    at_random = places_at_random(room, counts["matching"], share)
    turn = {item: place for place, item in enumerate(selected.draws)}
    open_draws = sorted(_rows(connection, _OPEN_DRAWS), key=lambda row: turn[row["item_id"]])
    shown_draws, to_draw = open_draws[:at_random], max(0, at_random - len(open_draws))
    in_order = _rows(
        connection,
        _BY_ORDER.replace("$matches", order.matches)
        .replace("$order", order.by)
        .replace("$limit", str(room + counts["decided"])),
    )
    chosen = _chosen(in_order, shown_draws, room - len(shown_draws) - to_draw)
    frames, new = _draw(connection, chosen.ids, to_draw, selected.next_number)
    if len(new) < to_draw:  # nothing is left to draw from: the order has the places
        chosen = _chosen(in_order, [*shown_draws, *new], room - len(shown_draws) - len(new))
    selection = _selection(connection, selected, new, chosen.ids, frames)
    return Doubtful(_items([*shown_draws, *new]), _items(chosen.shown), selection)


def _chosen(in_order: Rows, drawn: Rows, places: int) -> _Chosen:
    """Goes down the order until the places are taken; a mask shown as drawn, or decided, takes none."""
    elsewhere = {row["item_id"] for row in drawn}
    shown: Rows = []
    ids: list[str] = []
    for row in in_order:
        if len(shown) == places:
            break
        ids.append(row["item_id"])
        if row["waiting"] and row["item_id"] not in elsewhere:
            shown.append(row)
    return _Chosen(shown, ids)


def _draw(
    connection: duckdb.DuckDBPyConnection, chosen: Sequence[str], to_draw: int, number: int
) -> tuple[dict[str, Frame], Rows]:
    """A random sample of all that wait and were never selected, without replacement, and what it is from.

    The draw is a digest of the queue's number and the item, so that whoever asks for the same queue gets it.
    """
    connection.register("just_chosen", pa.table({"item_id": pa.array(chosen, pa.string())}))
    drawn = _rows(connection, _DRAW.replace("$number", str(number)).replace("$limit", str(to_draw)))
    of_model = Counter(row["model_id"] for row in drawn)
    waiting = _rows(connection, _FRAMES) if drawn else []
    return {row["model_id"]: Frame(row["waiting"], of_model[row["model_id"]]) for row in waiting}, drawn


def _selection(
    connection: duckdb.DuckDBPyConnection,
    selected: Selected,
    drawn: Rows,
    chosen: Iterable[str],
    frames: dict[str, Frame],
) -> Selection:
    seen, number, before = selected.first_seen, selected.next_number, selected.chosen
    parts = [(row["run_id"], row["shard"]) for row in _rows(connection, _PARTS)]
    return Selection(
        drawn={row["item_id"]: seen.get((row["run_id"], row["shard"]), number) for row in drawn},
        chosen=tuple(item for item in chosen if item not in before),
        frames=frames,
        seen=by_run(part for part in parts if part not in seen),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    return connection.sql(sql).to_arrow_table().to_pylist()


def _items(rows: Rows) -> list[QueueItem]:
    return [queue_item(row) for row in rows]
