"""How long each part of the work on an image took."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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

    transferring: int
    computing: int


def per_thread(legs: Legs, threads: Threads) -> Legs:
    """The seconds each leg would take a single one of its threads; nobody works at waiting."""
    return Legs(
        read=legs.read / threads.transferring,
        decode=legs.decode / threads.computing,
        infer=legs.infer / threads.computing,
        encode=legs.encode / threads.computing,
        write=legs.write / threads.transferring,
    )


def bottleneck(occupied: Legs) -> str | None:
    """The leg that kept its threads busiest, of seconds per thread; None when there was nothing to do."""
    name, seconds = max(asdict(occupied).items(), key=lambda leg: leg[1])
    return name if seconds > 0 else None
