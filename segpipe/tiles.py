"""An image at its own scale as overlapping tiles: where each lies, and which pixels it decides (C11).

All in network pixels. Tiles begin at multiples of what the networks halve, or a tile would see another grid
than the whole image; each pixel is decided by one tile, the one whose middle is nearer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

# The largest tile by default: large cores make margins cheap. A convolutional network needs such a margin.
TILE, MARGIN = (1024, 1024), 128


@dataclass(frozen=True)
class Span:
    """A tile along one axis: where it starts, and the pixels that it decides, from first to before end."""

    start: int
    first: int
    end: int

    def within(self, stride: int) -> slice:
        """What it decides, on its own grid of this stride."""
        return slice((self.first - self.start) // stride, -((self.start - self.end) // stride))

    def cells(self, stride: int) -> slice:
        """The same, on the whole image's grid."""
        return slice(self.first // stride, -(-self.end // stride))


@dataclass(frozen=True)
class Tile:
    """A tile of an image."""

    down: Span
    across: Span

    def within(self, stride: int) -> tuple[slice, slice]:
        """What it decides, on its own grid of this stride."""
        return self.down.within(stride), self.across.within(stride)

    def cells(self, stride: int) -> tuple[slice, slice]:
        """The same, on the whole image's grid."""
        return self.down.cells(stride), self.across.cells(stride)


@dataclass(frozen=True)
class Tiles:
    """All tiles of an image; size: the height and width of each, which may reach beyond the image."""

    size: tuple[int, int]
    tiles: tuple[Tile, ...]

    @property
    def cost(self) -> int:
        """Pixels that the networks see."""
        return math.prod(self.size) * len(self.tiles)


@dataclass(frozen=True)
class Tiling:
    """How a model sees images: scale, image pixels per network pixel; the rest as `cut` takes it."""

    scale: float
    tile: tuple[int, int]
    margin: int
    multiples: tuple[int, int]
    smallest: tuple[int, int]

    def of_image(self, shape: tuple[int, int]) -> Tiles:
        """The tiles of an image of this height and width, in its own pixels."""
        return self.at_scale(size_at(self.scale, shape))

    def at_scale(self, size: tuple[int, int]) -> Tiles:
        """The tiles of an image that is so large at its scale."""
        return cut(size, self.tile, self.margin, self.multiples, self.smallest)


def cost_of(cuts: Sequence[Tiles], fitted: tuple[int, int]) -> float:
    """Pixels that the networks see of images, against those of as many fitted to a size (height, width)."""
    return sum(one.cost for one in cuts) / (math.prod(fitted) * len(cuts))


def size_at(scale: float, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width in network pixels of an image of this shape; scale: image pixels per network pixel."""
    return max(1, round(shape[0] / scale)), max(1, round(shape[1] / scale))


def cut(
    shape: tuple[int, int],
    tile: tuple[int, int],
    margin: int,
    multiples: tuple[int, int],
    smallest: tuple[int, int] = (1, 1),
) -> Tiles:
    """The tiles of an image of a shape (height, width), evenly spread, each at most `tile` large and, however
    small the image, no smaller than `smallest`.

    margin: what a tile sees, at least, beyond what it decides, up to rounding, except at the image's borders.
    multiples: of what a tile's start and size, and of what the borders between tiles, are multiples.
    """
    (height, down), (width, across) = (
        _spans(length, most, least, margin, multiples)
        for length, most, least in zip(shape, tile, smallest, strict=True)
    )
    return Tiles((height, width), tuple(Tile(*spans) for spans in product(down, across)))


def _spans(
    length: int, tile: int, least: int, margin: int, multiples: tuple[int, int]
) -> tuple[int, list[Span]]:
    start_multiple, cell = multiples
    tile -= tile % start_multiple
    side = min(tile, _up(max(length, least), start_multiple))
    starts = _starts(_up(max(length - side, 0), start_multiple), side - 2 * margin, start_multiple)
    borders = [(left + side + right) // 2 // cell * cell for left, right in pairwise(starts)]
    ends = [*borders, length]
    return side, [Span(*span) for span in zip(starts, [0, *borders], ends, strict=True)]


def _starts(last: int, most: int, multiple: int) -> list[int]:
    """From 0 to last, at most `most` apart, as evenly as multiples can be."""
    most_multiples = max(1, most // multiple)
    steps = math.ceil(last / multiple / most_multiples)
    return [0] + [last // multiple * step // steps * multiple for step in range(1, steps + 1)]


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def pixels_of(image: np.ndarray, tile: Tile, size: tuple[int, int]) -> np.ndarray:
    """What a tile of this size sees of an image (h,w,3): beyond its borders the last pixels again."""
    seen = image[tile.down.start : tile.down.start + size[0], tile.across.start : tile.across.start + size[1]]
    missing = size[0] - seen.shape[0], size[1] - seen.shape[1]
    if missing == (0, 0):
        return seen
    return np.pad(seen, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def in_passes(pixels: int, sizes: Sequence[tuple[int, int]]) -> Iterator[range]:
    """Which of many tiles, by their sizes, go through the networks together: neighbours of one size, of at
    most so many pixels, and one at least."""
    first = 0
    for index in range(1, len(sizes) + 1):
        together = (index + 1 - first) * math.prod(sizes[first])
        if index == len(sizes) or sizes[index] != sizes[first] or together > pixels:
            yield range(first, index)
            first = index
