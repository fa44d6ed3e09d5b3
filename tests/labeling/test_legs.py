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
        (
            Legs(infer=3, read=16, wait=9),
            "infer",
        ),  # 3 s / 1 thread > 16 s / 8 threads, and waiting is no work
        (Legs(infer=1, read=16, encode=3), "read"),  # 16 s / 8 threads > 3 s / 2 threads
        (Legs(infer=1, read=16, encode=5), "encode"),  # 16 s / 8 threads < 5 s / 2 threads
        (Legs(infer=1, write=8, decode=16), "write"),
        (Legs(), None),
    ],
)
def test_the_bottleneck_is_the_leg_that_kept_its_threads_busiest(legs: Legs, slowest: str | None) -> None:
    assert bottleneck(per_thread(legs, Threads(reading=8, judging=1, writing=2))) == slowest
