"""Results as plain aligned text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from segpipe.printable import printable


def result_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A result's plain values first, a line each; then each nested mapping as a table of its own."""
    plain = {name: value for name, value in result.items() if not isinstance(value, Mapping)}
    yield from columns([(name.replace("_", " "), _cell(value)) for name, value in plain.items()])
    for name in [name for name, value in result.items() if name not in plain and value]:
        yield from ("", name.replace("_", " "))
        yield from (f"  {line}" for line in _table(result[name]))


def _table(rows: Mapping[str, Any]) -> Iterator[str]:
    nested = {name: row for name, row in rows.items() if isinstance(row, Mapping)}
    if not nested:
        return columns([(name, _cell(value)) for name, value in rows.items()])
    header = list(next(iter(nested.values())))
    body = [(name, *(_cell(row.get(column)) for column in header)) for name, row in nested.items()]
    return columns([("", *header), *body])


def columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The rows as lines, each column as wide as its widest cell."""
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple | list):
        return "; ".join(map(str, value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
