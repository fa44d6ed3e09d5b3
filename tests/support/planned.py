"""A plan's images, all at once."""

from __future__ import annotations

import pyarrow as pa

from segpipe.labeling.plan_files import PLAN_SCHEMA, PlannedImages


def planned_table(images: PlannedImages) -> pa.Table:
    """All of them, as one table."""
    return pa.concat_tables([PLAN_SCHEMA.empty_table(), *images.tables()])
