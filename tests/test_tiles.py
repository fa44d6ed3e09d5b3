"""How an image is cut into tiles."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from segpipe.tiles import Span, Tile, cut, in_passes, pixels_of

LENGTHS = st.integers(1, 700)


def test_a_small_image_is_one_tile_that_decides_all_of_it() -> None:
    tiles = cut((40, 33), (128, 128), 32, (16, 2))
    assert tiles.size == (48, 48)
    assert tiles.tiles == (Tile(Span(0, 0, 40), Span(0, 0, 33)),)


def test_worked_out_by_hand() -> None:
    """160 pixels, tiles of 96 with margins of 16: at most 64 apart, so one more at 64; the border is the
    middle of what they share, from 64 to 96."""
    tiles = cut((96, 160), (96, 96), 16, (16, 2))
    assert tiles.size == (96, 96)
    assert [tile.across for tile in tiles.tiles] == [Span(0, 0, 80), Span(64, 80, 160)]
    assert tiles.cost == 2 * 96 * 96


def test_tiles_are_spread_evenly() -> None:
    """250 pixels end at 256: the last tile of 96 starts at 160, the others, at most 64 apart, between."""
    starts = [tile.across.start for tile in cut((16, 250), (96, 96), 16, (16, 2)).tiles]
    assert starts == [0, 48, 96, 160]


@given(
    LENGTHS,
    LENGTHS,
    st.integers(1, 6).map(lambda multiple: multiple * 32),
    st.integers(0, 40),
    st.sampled_from([(16, 2), (32, 4), (32, 32)]),
)
@example(1, 1, 32, 0, (16, 2))
def test_each_pixel_is_decided_once_by_a_tile_that_sees_the_margin(
    height: int, width: int, tile: int, margin: int, multiples: tuple[int, int]
) -> None:
    margin = min(margin, (tile - multiples[0]) // 2)
    tiles = cut((height, width), (tile, tile), margin, multiples)
    decided = np.zeros((height, width), int)
    for one in tiles.tiles:
        decided[one.down.first : one.down.end, one.across.first : one.across.end] += 1
        for span, length, side in ((one.down, height, tiles.size[0]), (one.across, width, tiles.size[1])):
            assert span.start % multiples[0] == 0
            rounded = multiples[1]
            assert span.first == 0 or span.first - span.start >= margin - rounded
            assert span.end == length or span.start + side - span.end >= margin
            assert span.end <= span.start + side
    assert (decided == 1).all()


def test_what_lies_beyond_the_image_repeats_its_last_pixels() -> None:
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    tile = Tile(Span(0, 0, 3), Span(4, 4, 5))
    seen = pixels_of(image, tile, (4, 2))
    assert seen.shape == (4, 2, 3)
    assert (seen[:3] == image[:, 4:5]).all()
    assert (seen[3] == image[2, 4]).all()


def test_tiles_of_one_size_share_passes() -> None:
    sizes = [(10, 10)] * 5 + [(20, 10)] * 2 + [(100, 100)]
    assert list(in_passes(300, sizes)) == [range(3), range(3, 5), range(5, 6), range(6, 7), range(7, 8)]
    assert list(in_passes(300, [])) == []
