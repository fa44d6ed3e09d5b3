"""The files that an export or an import leaves beside the data."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

LEFT_OUT = "left_out.csv"
UNFINISHED = "export-unfinished.txt"


def csv_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """UTF-8, a header and a line for each row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue().encode()
