"""The scale that a training or an adoption asks for, as the fields of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from segpipe.config import AdoptSettings, TrainSettings, working_size
from segpipe.errors import DatasetError
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
from segpipe.working_size import SIZE_MULTIPLE

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
    """shapes: (height, width) of some images; sizes: of the objects in some of them.

    Raises DatasetError where a scale leaves next to nothing of the images.
    """
    chosen = _chosen(settings, sizes, classes, shapes, grid)
    line, warnings = scale_line(chosen, grid), tuple(lost_lines(chosen, f"split {settings.split}"))
    if chosen.scale is None:
        return Scale(None, None, None, line, warnings)
    _require_pixels(chosen.scale, shapes, settings.split)
    return Scale(chosen.scale, grid.tile, grid.margin, line, warnings)


def _require_pixels(scale: float, shapes: Sequence[tuple[int, int]], split: str) -> None:
    """Half of the images, at least, are to be as large at their scale as the smallest working size."""
    shorter = median(min(shape) for shape in shapes)
    left, most = round(shorter / scale), max(1.0, shorter / SIZE_MULTIPLE)
    if shorter / scale < SIZE_MULTIPLE and scale > 1:
        raise DatasetError(
            f"a --scale of {scale:g} leaves {left} of the {shorter:g} pixels of the shorter side of images "
            f"in split {split}: give one of at most {most:.3g}"
        )


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
