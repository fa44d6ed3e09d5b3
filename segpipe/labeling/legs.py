"""How long each part of the work on an image took."""

from __future__ import annotations

from dataclasses import dataclass


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
        return Legs(**{leg: seconds + getattr(other, leg) for leg, seconds in vars(self).items()})


@dataclass(frozen=True)
class Threads:
    """How many threads move images and masks, and how many compute."""

    moving: int
    computing: int


def per_thread(legs: Legs, threads: Threads) -> Legs:
    """The seconds each leg would take a single one of its threads; nobody works at waiting."""
    return Legs(
        read=legs.read / threads.moving,
        decode=legs.decode / threads.computing,
        infer=legs.infer / threads.computing,
        encode=legs.encode / threads.computing,
        write=legs.write / threads.moving,
    )


def bottleneck(occupied: Legs) -> str | None:
    """The longest leg of the busier kind of threads, by seconds per thread; None when nothing was done."""
    moving = {"read": occupied.read, "write": occupied.write}
    computing = {"decode": occupied.decode, "infer": occupied.infer, "encode": occupied.encode}
    busier = max(computing, moving, key=lambda legs: sum(legs.values()))
    name, seconds = max(busier.items(), key=lambda leg: leg[1])
    return name if seconds > 0 else None
