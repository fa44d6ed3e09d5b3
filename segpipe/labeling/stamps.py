"""From when on a run's rows are stamped: after every row that is there, also where a clock was set back.

The newest row of an image is the one that counts, and which is the newest is told by its stamp.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import pyarrow.compute as pc
import pyarrow.dataset as ds

from segpipe.manifests import store
from segpipe.manifests.parts import manifests_root
from segpipe.redaction import redact
from segpipe.storage.retry import explained

logger = logging.getLogger(__name__)

_NEXT = timedelta(microseconds=1)


def first_stamp(output: str, now: datetime) -> datetime:
    """Now, or just after the newest row of OUTPUT where that is in the future. StorageError."""
    # Where the clock is right the parts' statistics rule every part out, and no row is read.
    ahead = store.scan_manifest(output, ["labeled_at"], ds.field("labeled_at") >= now)
    with explained(manifests_root(output)):
        return max(
            (pc.max(batch["labeled_at"]).as_py() + _NEXT for batch in ahead if batch.num_rows), default=now
        )


def say_if_ahead(stamp: datetime, now: datetime, output: str) -> None:
    """Warn that the clock is behind the rows that are there."""
    if stamp > now:
        logger.warning(
            "the clock says %s, but the newest row under %s is of %s: rows are stamped just after that one, "
            "so that they count as newer; set this machine's clock, or wait",
            now.isoformat(timespec="seconds"),
            redact(output),
            (stamp - _NEXT).isoformat(timespec="seconds"),
        )
