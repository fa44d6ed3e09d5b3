"""From when on a run's rows are stamped: after every row that is there, also where a clock was set back.

The newest row of an image is the one that counts, and which is the newest is told by its stamp.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from segpipe.manifests import store
from segpipe.manifests.damage import naming_the_damaged
from segpipe.manifests.far_ahead import say_if_far_ahead
from segpipe.manifests.parts import manifests_root
from segpipe.manifests.schema import FARTHEST_AHEAD
from segpipe.redaction import redact
from segpipe.storage.retry import explained

logger = logging.getLogger(__name__)

_NEXT = timedelta(microseconds=1)


@dataclass(frozen=True)
class RowsAhead:
    """Rows stamped later than now: the newest stamp of less than a year ahead, None without one; and how many
    are stamped beyond that, which no clock can have told."""

    newest: datetime | None
    far: int


def rows_ahead(output: str, now: datetime) -> RowsAhead:
    """What OUTPUT holds from `now` on. StorageError."""
    # Where the clock is right the parts' statistics rule every part out, and no row is read.
    stamp = ds.field("labeled_at")
    ahead = store.scan_manifest(output, ["labeled_at"], (stamp >= now) | stamp.is_null())
    with explained(manifests_root(output)), naming_the_damaged(output):
        found = [_of_batch(batch["labeled_at"], now + FARTHEST_AHEAD) for batch in ahead]
    newest = max((one.newest for one in found if one.newest), default=None)
    return RowsAhead(newest, sum(one.far for one in found))


def _of_batch(stamps: pa.Array, far_from: datetime) -> RowsAhead:
    if stamps.null_count:
        raise ValueError("labeled_at")  # of a file that is no part
    near = stamps.filter(pc.less(stamps, pa.scalar(far_from, stamps.type)))
    return RowsAhead(pc.max(near).as_py(), len(stamps) - len(near))


def first_stamp(ahead: RowsAhead, now: datetime) -> datetime:
    """From when on rows are stamped: now, or just after the newest row where that is in the future."""
    return now if ahead.newest is None else ahead.newest + _NEXT


def say_if_ahead(ahead: RowsAhead, now: datetime, output: str) -> None:
    """Warn that the clock is behind the rows that are there, and of rows that no clock can have stamped."""
    if ahead.newest is not None:
        logger.warning(
            "the clock says %s, but the newest row under %s is of %s: rows are stamped just after that one, "
            "so that they count as newer; set this machine's clock, or wait",
            now.isoformat(timespec="seconds"),
            redact(output),
            ahead.newest.isoformat(timespec="seconds"),
        )
    say_if_far_ahead(ahead.far, output)
