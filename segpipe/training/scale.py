"""The scale that a training or an adoption asks for, as the fields of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.config import AdoptSettings, TrainSettings, working_size
from segpipe.inspection.objects import ObjectSizes
from segpipe.inspection.scale import (
    ChosenScale,
    Grid,
    at_scale,
    choose_scale,
    fitted_scale,
    lost_lines,
    scale_line,
)
from segpipe.tiles import MARGIN

# A margin takes at most such a part of a small tile, on each side.
MARGIN_SHARE = 4


@dataclass(frozen=True)
class Scale:
    """The fields of a spec, all None where images are fitted; line: what was chosen and why; warnings: what
    is lost all the same."""

    scale: float | None
    tile: tuple[int, int] | None
    margin: int | None
    line: str
    warnings: tuple[str, ...]


def asked_tile(tile: str | None, otherwise: tuple[int, int]) -> tuple[int, int]:
    """The tile that was asked for, as the networks take it, or the other."""
    return otherwise if tile is None else working_size(tile)


def margin_of(tile: tuple[int, int]) -> int:
    """What its neighbours decide of a tile, along its edges."""
    return min(MARGIN, min(tile) // MARGIN_SHARE)


def scale_of(
    settings: TrainSettings | AdoptSettings,
    sizes: ObjectSizes,
    classes: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    grid: Grid,
) -> Scale:
    """shapes: (height, width) of some images; sizes: of the objects in some of them."""
    chosen = _chosen(settings, sizes, classes, shapes, grid)
    line, warnings = scale_line(chosen, grid), tuple(lost_lines(chosen, f"split {settings.split}"))
    if chosen.scale is None:
        return Scale(None, None, None, line, warnings)
    return Scale(chosen.scale, grid.tile, grid.margin, line, warnings)


def _chosen(
    settings: TrainSettings | AdoptSettings,
    sizes: ObjectSizes,
    classes: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    grid: Grid,
) -> ChosenScale:
    if settings.scale == "fit" or (settings.scale == "auto" and settings.image_size is not None):
        return fitted_scale(sizes, classes, grid)
    if settings.scale == "auto":
        return choose_scale(sizes, classes, shapes, grid, settings.most_cost)
    return at_scale(float(settings.scale), sizes, classes, shapes, grid)
