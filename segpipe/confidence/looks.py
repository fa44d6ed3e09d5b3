"""What it costs to look at the same labelled images again: each look is tested at an error of its own.

A test that may err with probability delta errs more often when it is repeated on images that grow, until it
says what was hoped for. So later looks get less, and the sum over all of them is bounded beforehand (a union
bound; 1/2 + 1/6 + 1/12 + ... + 1/(k (k+1)) stays below 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

_OpenShare = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Look:
    """Which calibration of a model this was on images that overlap with those of the ones before, from 1 on.

    `level` is the error it was tested at, `confidence` (both 0 to 1) holds for all these looks together.
    """

    number: Annotated[int, Field(ge=1, le=10**8)]
    level: _OpenShare
    confidence: _OpenShare

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def calibration_level(number: int, confidence: float) -> float:
    """The error (0 to 1) of the number-th calibration: all of 1 - confidence for the first, then less.

    However many there are, together they err with less than 1.5 times what was asked for.
    """
    return (1 - confidence) / (1 if number == 1 else number * (number + 1))


def comparison_level(number: int, confidence: float) -> float:
    """The error (0 to 1) of the number-th comparison; together they err with less than 1 - confidence."""
    return (1 - confidence) / (number * (number + 1))


def next_level(look: Look) -> float:
    """The error that one more calibration on these images would have, asked for with the same confidence."""
    asked = look.level * (1 if look.number == 1 else look.number * (look.number + 1))
    return calibration_level(look.number + 1, 1 - asked)


def together(levels: float) -> float:
    """The confidence left when tests have spent so much: four decimals, rounded down; may be below 0."""
    return math.floor(round((1 - levels) * 1e4, 6)) / 1e4


def in_words(look: Look) -> str:
    """What this look has cost, what all of them promise, and what one more would have."""
    more = f"one more on images that overlap would be tested at {next_level(look):.3g}"
    if look.number == 1:
        return f"the first on these images, tested at an error of {look.level:.3g}; {more}"
    return (
        f"number {look.number} on images that overlap, tested at an error of {look.level:.3g}; together they "
        f"hold with confidence {look.confidence:g}; {more}"
    )
