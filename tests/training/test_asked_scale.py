"""Which scales and tiles a training may be asked for."""

from __future__ import annotations

import pytest

from segpipe.config import TrainSettings
from segpipe.errors import DatasetError
from segpipe.inspection.objects import ObjectSizes
from segpipe.inspection.scale import Grid
from segpipe.training.scale import Scale, scale_of

PHOTOS = [(360, 480), (360, 480), (64, 96)]


def asked(scale: str, shapes: list[tuple[int, int]]) -> Scale:
    settings = TrainSettings(data="data", model="model", scale=scale)
    return scale_of(settings, ObjectSizes(), ("ground", "cell"), shapes, Grid((256, 352)))


def test_a_scale_that_leaves_next_to_nothing_of_the_images_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"999 leaves 0 of the 360 pixels .*: give one of at most 11\.2$"):
        asked("999", PHOTOS)
    with pytest.raises(DatasetError, match="12 leaves 30 of the 360 pixels"):
        asked("12", PHOTOS)


def test_half_of_the_images_may_be_smaller() -> None:
    assert asked("11.2", PHOTOS).scale == 11.2


def test_tiny_images_are_seen_at_their_own_size() -> None:
    assert asked("1", [(20, 20)]).scale == 1


def test_a_tile_is_taken_as_it_was_given_or_not_at_all() -> None:
    assert TrainSettings(data="data", model="model", scale="1", tile="64x96").tile == "64x96"
    for tile in ("16x16", "33x33", "64x100"):
        with pytest.raises(ValueError, match=f"'{tile}' is no tile: .* multiples of 32"):
            TrainSettings(data="data", model="model", scale="1", tile=tile)
