"""Tables as CSV that comes back as it was."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """UTF-8, a header and a line for each row."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # The writer quotes what ends its own lines; a reader ends one at a carriage return too.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (names, *rows):
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
    return text.getvalue().encode()
