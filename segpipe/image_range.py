"""A range of pixel values that is brought to 0 to 255 (contract C14), for images of more than 8 bits."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

ImageRange = tuple[float, float]


def checked_range(value: Any) -> ImageRange:
    """LOW and HIGH, in the units of stored values. Raises ValueError: not two finite numbers, LOW first."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_number, value)):
        raise ValueError(f"{value!r} is not a range [LOW, HIGH] of two numbers")
    low, high = float(value[0]), float(value[1])
    if not low < high or not math.isfinite(high - low):
        raise ValueError(f"{shown_range((low, high))} is not a range: LOW must be below HIGH, both finite")
    return low, high


def shown_range(image_range: ImageRange | None) -> str:
    """The range as dataset.json holds it, or "none"."""
    return "none" if image_range is None else json.dumps(plain_range(image_range))


def plain_range(image_range: ImageRange) -> list[float]:
    """LOW and HIGH for JSON: whole numbers without a point."""
    return [int(value) if float(value).is_integer() else value for value in image_range]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
