"""Which classes the indices of a mask stand for: those of the model that made it, not those of the newest."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from segpipe.errors import NotFoundError
from segpipe.manifests.store import classes_of, part_classes, part_uri
from segpipe.manifests.views import open_views

_ONE_PART_EACH = """
    SELECT model_id, min(struct_pack(run_date := run_date, run_id := run_id, shard := shard)) AS part
    FROM labels WHERE list_contains($model_ids, model_id) GROUP BY model_id"""


def classes_by_model(output: str, model_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The classes of each of these models that has labelled into OUTPUT. NotFoundError, StorageError."""
    with open_views(output) as connection:
        found = connection.execute(_ONE_PART_EACH, {"model_ids": sorted(set(model_ids))}).fetchall()
    return {model_id: _classes(output, **part) for model_id, part in found}


def _classes(output: str, run_date: date, run_id: str, shard: int) -> tuple[str, ...]:
    try:
        return part_classes(part_uri(output, run_date, run_id, shard))
    except NotFoundError:  # a part under a name of its own: nothing but the newest is left to ask
        return classes_of(output)
