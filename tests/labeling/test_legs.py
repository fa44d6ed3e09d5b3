"""Seconds per leg."""

from __future__ import annotations

import pytest

from segpipe.labeling.legs import Legs, Threads, bottleneck, per_thread


def test_legs_add_up() -> None:
    total = Legs(read=1, wait=2) + Legs(read=0.5, infer=3)
    assert total == Legs(read=1.5, decode=0, infer=3, encode=0, write=0, wait=2)


@pytest.mark.parametrize(
    ("legs", "slowest"),
    [
        (Legs(infer=5, read=16, wait=9), "infer"),  # 5 s / 2 > 16 s / 8, and waiting is no work
        (Legs(infer=1, read=16, encode=3), "read"),  # 16 s / 8 > 3 s / 2
        (Legs(infer=1, read=16, encode=5), "encode"),
        (Legs(infer=1, write=20, decode=4), "write"),
        (Legs(infer=1, write=8, decode=4), "decode"),
        (Legs(), None),
    ],
)
def test_the_bottleneck_is_the_leg_that_kept_its_threads_busiest(legs: Legs, slowest: str | None) -> None:
    assert bottleneck(per_thread(legs, Threads(transferring=8, computing=2))) == slowest
