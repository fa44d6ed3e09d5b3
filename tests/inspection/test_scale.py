"""Which scale is chosen for objects of known sizes."""

from __future__ import annotations

import numpy as np
import pytest

from segpipe.config import DEFAULT_ARCHITECTURE
from segpipe.inspection.objects import ObjectSizes
from segpipe.inspection.scale import Grid, at_scale, choose_scale, fitted_scale, lost_lines, scale_line
from segpipe.kinds import ARCHITECTURES
from segpipe.models.generators.protocol import build_generator

CLASSES = ("ground", "cell")
LARGE = (2048, 2816)  # eight times 256x352 along each side
GRID = Grid((256, 352))


def sizes(**diameters: float) -> ObjectSizes:
    """A hundred objects of each class, in images of 2048x2816."""
    found = ObjectSizes()
    found.add({CLASSES.index(name): np.full(100, one) for name, one in diameters.items()}, LARGE)
    return found


def test_large_objects_are_fitted() -> None:
    """48 pixels are 6 at an eighth, 3 cells of 2."""
    chosen = choose_scale(sizes(ground=900, cell=48), CLASSES, [LARGE], GRID, 8)
    assert (chosen.scale, chosen.cost, dict(chosen.lost), chosen.reason) == (None, 1.0, {}, None)
    assert lost_lines(chosen, "split train") == []


def test_the_least_scale_that_keeps_small_ones() -> None:
    """30 pixels are 3 cells of 2 at a fifth of the size; 410x563, in one tile of 416x576."""
    chosen = choose_scale(sizes(ground=900, cell=30), CLASSES, [LARGE], GRID, 8)
    assert chosen.scale == pytest.approx(5)
    assert chosen.cost == pytest.approx(416 * 576 / (256 * 352))
    assert chosen.reason == "cell"
    assert not chosen.lost
    assert "class 'cell'" in scale_line(chosen, GRID)


def test_no_more_is_paid_than_was_said_and_what_is_lost_is_told() -> None:
    """10 pixels want 1.67; for 8 times the cost images come to 800x1100 or so: a scale of 2.5 at least."""
    chosen = choose_scale(sizes(ground=900, cell=10), CLASSES, [LARGE], GRID, 8)
    assert chosen.scale is not None
    assert 2.5 < chosen.scale < 3.6
    assert chosen.cost <= 8
    assert chosen.lost == {"cell": pytest.approx(10 / chosen.scale / 2)}
    (line,) = lost_lines(chosen, "split train")
    assert "'cell'" in line
    assert "--most-cost" in line


def test_never_above_the_own_size() -> None:
    chosen = choose_scale(sizes(cell=5.2), CLASSES, [(400, 400)], Grid((256, 256)), 8)
    assert chosen.scale == 1
    assert chosen.lost == {"cell": pytest.approx(2.6)}
    assert "in the images themselves" in lost_lines(chosen, "split train")[0]


def test_a_scale_that_makes_no_difference_is_not_worth_tiles() -> None:
    chosen = choose_scale(sizes(cell=5.2), CLASSES, [(300, 420)], GRID, 8)
    assert chosen.scale is None  # 1.4 times the pixels
    assert chosen.lost == {"cell": pytest.approx(5.2 / 8 / 2)}


def test_what_was_asked_for() -> None:
    assert at_scale(2, sizes(cell=12), CLASSES, [LARGE], GRID).lost == {}
    assert at_scale(2, sizes(cell=11), CLASSES, [LARGE], GRID).lost == {"cell": pytest.approx(2.75)}
    assert fitted_scale(sizes(cell=11), CLASSES, GRID).lost == {"cell": pytest.approx(11 / 8 / 2)}


def test_the_grid_is_that_of_the_default_networks() -> None:
    generator = build_generator(ARCHITECTURES[DEFAULT_ARCHITECTURE].generator, 2)
    assert (GRID.stride, GRID.multiple) == (generator.judged_stride, generator.size_multiple)
