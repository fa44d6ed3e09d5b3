"""Seconds per leg."""

from __future__ import annotations

from segpipe.labeling.legs import Legs


def test_legs_add_up() -> None:
    total = Legs(read=1, wait=2) + Legs(read=0.5, infer=3)
    assert total == Legs(read=1.5, decode=0, infer=3, encode=0, write=0, wait=2)
