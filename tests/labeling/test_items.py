"""Seconds per leg."""

from __future__ import annotations

import pytest

from segpipe.labeling.items import Legs, Threads, bottleneck, legs_of, per_thread


def test_legs_add_up() -> None:
    total = Legs(read=1, wait=2) + Legs(read=0.5, infer=3)
    assert total == Legs(read=1.5, decode=0, infer=3, encode=0, write=0, wait=2)


def test_legs_of_an_earlier_or_a_later_version_are_read() -> None:
    earlier = {"read": 1.0, "decode": 2.0, "infer": 3.0, "encode": 4.0, "write": 5.0, "wait": 6.0}
    assert legs_of(earlier) == Legs(read=1, decode=2, infer=3, encode=4, write=5, device=0, wait=6)
    assert legs_of({"infer": 3.0, "a leg to come": 7.0}) == Legs(infer=3)


@pytest.mark.parametrize(
    ("legs", "slowest"),
    [
        (Legs(infer=5, read=16, wait=9), "infer"),  # 5 s / 2 > 16 s / 8, and waiting is no work
        (Legs(infer=1, read=17, encode=3), "read"),  # 17 s / 8 > 4 s / 2
        (Legs(infer=1, read=16, encode=5), "encode"),
        (Legs(infer=1, write=24, decode=4), "write"),
        (Legs(infer=1, write=8, decode=4), "decode"),
        (Legs(infer=2, read=12, encode=1.6), "infer"),  # 12 s / 8 is the longest, but the cores are busier
        (Legs(infer=1, device=8, decode=4), "infer"),  # who waits for the device waits for inference
        (Legs(infer=1, device=1, decode=4), "decode"),
        (Legs(), None),
    ],
)
def test_the_bottleneck_is_the_leg_that_kept_its_threads_busiest(legs: Legs, slowest: str | None) -> None:
    assert bottleneck(per_thread(legs, Threads(moving=8, computing=2))) == slowest
