"""The files that an export or an import leaves beside the data."""

from __future__ import annotations

LEFT_OUT = "left_out.csv"
UNFINISHED = "export-unfinished.txt"
