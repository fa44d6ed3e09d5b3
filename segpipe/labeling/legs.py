"""How long each part of the work on an image took."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Legs:
    """Seconds per leg of the work; legs that run in several threads at once can exceed the wall time.

    decode includes the resizing to the networks' size, infer the resizing of the mask to the image's.
    wait is what the run spent idle, waiting for finished images.
    """

    read: float = 0.0
    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    wait: float = 0.0

    def __add__(self, other: Legs) -> Legs:
        return Legs(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))
