"""Which masks that were drawn blind to the score count where a certificate grows."""

from __future__ import annotations

_COUNTED = "(SELECT * FROM $rows WHERE drawn IS TRUE AND reason NOT IN ('drift', 'suspended'))"


def counted_draws(rows: str) -> str:
    """SQL: those of the manifest rows in `rows` whose masks were drawn and count.

    Of a run, or a group, that went to review as a whole nothing is accepted, so its masks say nothing of what
    a threshold accepts.
    """
    return _COUNTED.replace("$rows", rows)
