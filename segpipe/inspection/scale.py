"""How large the networks should see the images: fitted, or at a scale that keeps small objects (C11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segpipe.inspection.objects import ObjectSizes
from segpipe.tiles import MARGIN, TILE, cost_of, cut, size_at

# An object must be so many cells of the networks' grid wide to be found.
CELLS = 3.0
# A scale that shows less than half as many pixels more is not worth its price.
WORTH = 1.5
HALVINGS = 30


@dataclass(frozen=True)
class Grid:
    """How the networks see: fitted (height, width), or in tiles with margins, all in network pixels; stride:
    network pixels to a cell of the grid that masks are judged on; multiple: of which tiles start. As a rule
    those of the default networks."""

    working_size: tuple[int, int]
    tile: tuple[int, int] = TILE
    margin: int = MARGIN
    stride: int = 2
    multiple: int = 16


@dataclass(frozen=True)
class ChosenScale:
    """Image pixels per network pixel, None: fitted; cost: pixels through the networks against those of fit;
    lost: class -> cells that its smallest objects are wide, of those that are fewer than 3; reason: of what
    is not fitted, the class whose objects asked for it."""

    scale: float | None
    cost: float
    lost: Mapping[str, float]
    reason: str | None


def choose_scale(
    sizes: ObjectSizes,
    classes: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    grid: Grid,
    most_cost: float,
) -> ChosenScale:
    """The least scale that keeps the small objects of every class, at most the images' own size.

    Small are objects as ObjectSizes.smallest says; kept, if they are 3 cells wide. shapes: (height, width) of
    some images. What costs more than most_cost times fit is not chosen, but the least scale that does not.
    """
    fitted = fitted_scale(sizes, classes, grid)
    if not fitted.lost:
        return fitted
    smallest = {name: _own(sizes, classes, name) for name in fitted.lost}
    reason = min(smallest, key=smallest.__getitem__)
    wanted = max(1.0, smallest[reason] / (CELLS * grid.stride))
    scale = _affordable(shapes, grid, most_cost, wanted)
    chosen = at_scale(scale, sizes, classes, shapes, grid)
    if chosen.cost < WORTH:
        return fitted
    return ChosenScale(chosen.scale, chosen.cost, chosen.lost, reason)


def fitted_scale(sizes: ObjectSizes, classes: Sequence[str], grid: Grid) -> ChosenScale:
    """Every image fitted to the working size."""
    lost = {}
    for number, name in enumerate(classes):
        _, seen = sizes.smallest(number, grid.working_size)
        if seen is not None and seen / grid.stride < CELLS:
            lost[name] = seen / grid.stride
    return ChosenScale(None, 1.0, lost, None)


def at_scale(
    scale: float,
    sizes: ObjectSizes,
    classes: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    grid: Grid,
) -> ChosenScale:
    """Every image at so many of its pixels per network pixel."""
    own = {name: _own(sizes, classes, name) for name in classes}
    cells = {name: diameter / scale / grid.stride for name, diameter in own.items()}
    lost = {name: wide for name, wide in cells.items() if wide < CELLS}
    return ChosenScale(scale, _cost(scale, shapes, grid), lost, None)


def _own(sizes: ObjectSizes, classes: Sequence[str], name: str) -> float:
    """How wide a class's smallest objects are, in pixels of the images; infinite where there is none."""
    own, _ = sizes.smallest(classes.index(name), (1, 1))
    return math.inf if own is None else own


def _cost(scale: float, shapes: Sequence[tuple[int, int]], grid: Grid) -> float:
    multiples = grid.multiple, grid.stride
    cuts = [cut(size_at(scale, shape), grid.tile, grid.margin, multiples) for shape in shapes]
    return cost_of(cuts, grid.working_size)


def _affordable(shapes: Sequence[tuple[int, int]], grid: Grid, most_cost: float, wanted: float) -> float:
    """The scale wanted, or the least above it that costs no more than most_cost times fit."""
    if _cost(wanted, shapes, grid) <= most_cost:
        return wanted
    low, high = wanted, wanted
    while _cost(high, shapes, grid) > most_cost:
        high *= 2
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _cost(middle, shapes, grid) <= most_cost else (middle, high)
    return high


def scale_line(chosen: ChosenScale, grid: Grid) -> str:
    """What was chosen, why, and what it costs."""
    fitted = f"{grid.working_size[0]}x{grid.working_size[1]}"
    if chosen.scale is None:
        return f"every image is fitted to {fitted}"
    asked = f" for the smallest objects of class {chosen.reason!r}" if chosen.reason else ""
    return (
        f"{chosen.scale:.3g} pixels of an image to one of the networks{asked}, in tiles of at most "
        f"{grid.tile[0]}x{grid.tile[1]} with margins of {grid.margin}: {chosen.cost:.1f} times the cost of "
        f"fitting images to {fitted}"
    )


def lost_lines(chosen: ChosenScale, place: str) -> list[str]:
    """Which classes have objects that are too small for the networks all the same, in one line."""
    if not chosen.lost:
        return []
    named = ", ".join(f"{name!r} ({cells:.1f})" for name, cells in chosen.lost.items())
    remedy = (
        "they are that small in the images themselves"
        if chosen.scale == 1
        else "a finer --scale, or a larger --most-cost, keeps more of them"
    )
    return [
        f"the smallest objects in {place} are fewer than {CELLS:.0f} cells of the networks' grid wide, and "
        f"such are often missed: {named}: {remedy}"
    ]
