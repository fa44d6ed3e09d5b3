"""Values of an Arrow column in JSON's own types, whatever DuckDB can put into one.

Python's types are too narrow: its dates end with the year 9999, DuckDB's and Arrow's do not, and they have
infinite ones; a day's last time is 24:00:00 there.
"""

from __future__ import annotations

import math
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pyarrow import types

_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = date(1970, 1, 1)
_INFINITE_DAYS, _INFINITE_TIME = 2**31 - 1, 2**63 - 1


def plain_values(array: pa.Array) -> list[Any]:
    """The values: None, bool, int, float, str, and lists and dicts of them.

    Times and intervals are ISO 8601, of a year beyond 9999 or before 1 with sign and all digits; infinite
    ones "infinity" and "-infinity". NaN and infinities become None, bytes hex digits, a map a list of pairs.
    A decimal that no float is exactly is text.
    """
    kind = array.type
    if types.is_struct(kind):
        return _structs(array)
    if types.is_map(kind):
        return _lists(array, [list(pair) for pair in _pairs(array)])
    if types.is_fixed_size_list(kind):
        return plain_values(array.cast(pa.list_(kind.value_type)))
    if types.is_list(kind) or types.is_large_list(kind):
        return _lists(array, plain_values(array.values))
    if types.is_dictionary(kind):
        return plain_values(array.dictionary_decode())
    if types.is_temporal(kind) and not types.is_interval(kind):
        return _times(array)
    return [_plain(value) for value in array.to_pylist()]


def _structs(array: pa.StructArray) -> list[Any]:
    names = [field.name for field in array.type]
    columns = [plain_values(column) for column in array.flatten()]
    rows = zip(*columns, strict=True) if columns else ((),) * len(array)
    return [
        dict(zip(names, row, strict=True)) if there else None
        for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _pairs(array: pa.MapArray) -> Any:
    return zip(plain_values(array.keys), plain_values(array.items), strict=True)


def _lists(array: pa.ListArray | pa.MapArray, values: list[Any]) -> list[Any]:
    """Cut by the offsets into `values`, which are those of the whole array that this may be a slice of."""
    bounds = pairwise(array.offsets.to_pylist())
    return [
        values[start:end] if there else None
        for (start, end), there in zip(bounds, array.is_valid().to_pylist(), strict=True)
    ]


def _times(array: pa.Array) -> list[str | None]:
    kind = array.type
    counts = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
    return [None if count is None else _moment(count, kind) for count in counts]


def _moment(count: int, kind: pa.DataType) -> str:
    if types.is_date(kind):
        return _date(count)
    return _timestamp(count, kind) if types.is_timestamp(kind) else _time(count, kind.unit)


def _timestamp(value: int, kind: pa.TimestampType) -> str:
    if abs(value) == _INFINITE_TIME:
        return "infinity" if value > 0 else "-infinity"
    per_second = _SECOND[kind.unit]
    days, rest = divmod(value, 86_400 * per_second)
    offset = "" if kind.tz is None else "+00:00"  # Arrow counts in UTC; a zone is only how it is shown
    return f"{_date(days)}T{_time(rest, kind.unit)}{offset}"


def _date(days: int) -> str:
    if abs(days) == _INFINITE_DAYS:
        return "infinity" if days > 0 else "-infinity"
    try:
        return (_EPOCH + timedelta(days=days)).isoformat()
    except OverflowError:
        return _far_date(days)


def _far_date(days: int) -> str:
    """The Gregorian calendar repeats itself every 400 years, which have 146,097 days."""
    cycles, rest = divmod(days, 146_097)
    near = _EPOCH + timedelta(days=rest)
    year = near.year + 400 * cycles
    return f"{year:+07d}{near.isoformat()[4:]}"


def _time(value: int, unit: str) -> str:
    seconds, fraction = divmod(value, _SECOND[unit])
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    if not fraction:
        return text
    digits = f"{fraction:0{len(str(_SECOND[unit])) - 1}d}"
    return f"{text}.{digits.rstrip('0'):0<6}"


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return _number(value)
        case bytes():
            return value.hex()
        case pa.MonthDayNano():
            return _interval(*value)
        case _:
            return str(value)


def _number(value: Decimal) -> int | float | str:
    if value == value.to_integral_value():
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601, a sign before each part that has one: P1Y2M3DT4H5M6.5S."""
    years, months = _truncated(months, 12)
    minutes, nanoseconds = _truncated(nanoseconds, 60 * 10**9)
    hours, minutes = _truncated(minutes, 60)
    on_days = _parts((years, "Y"), (months, "M"), (days, "D"))
    in_day = _parts((hours, "H"), (minutes, "M"), (Decimal(nanoseconds) / 10**9, "S"))
    return f"P{on_days}T{in_day}" if in_day else f"P{on_days or '0D'}"


def _parts(*parts: tuple[int | Decimal, str]) -> str:
    return "".join(f"{Decimal(value).normalize():f}{unit}" for value, unit in parts if value)


def _truncated(value: int, by: int) -> tuple[int, int]:
    """Quotient and rest, both of the value's sign."""
    quotient, rest = divmod(abs(value), by)
    return (quotient, rest) if value >= 0 else (-quotient, -rest)
