"""An image labelled at its own scale, tile by tile (contract C11): one mask, one score.

The networks see tiles; sums over pixels are added up. What the judge says of an image as a whole comes from
one look at the image fitted to the working size, with the tiles' mask shrunk to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segpipe.confidence.score import (
    ClassSums,
    adversarial_score,
    agreement,
    agreement_sums,
    class_ious,
    class_sums,
    expected_iou,
    in_order,
    iou_logit,
    own_parts,
    own_sums,
    routing_score,
)
from segpipe.errors import DeviceMemoryError
from segpipe.models.bundle import Bundle, has_one_size
from segpipe.models.device import autocast, fetch_together, on_device, stack_to_device
from segpipe.models.full_size import Part, part_of_mask
from segpipe.models.inference import FinishedMask, generate, look, normalised
from segpipe.models.judge import Judgement, ShownMask, shown_as
from segpipe.models.masks import class_logits
from segpipe.models.preprocess import resize_image, shown_image
from segpipe.tiles import Span, Tile, Tiles, Tiling, in_passes, pixels_of, size_at

# Pixels that go through the networks together: those of eight images at the largest default working size.
PIXELS_AT_ONCE = 8 * 256 * 352
# A probability is kept off 0, where its logarithm has no end.
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class ScaledImage:
    """An image as the networks see it: pixels (h,w,3) uint8 at its scale, whole (a,b,3) uint8 fitted to the
    working size; shape: its own height and width."""

    pixels: np.ndarray
    whole: np.ndarray
    shape: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at its scale."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class TileView:
    """A tile that went through both networks, with batch size 1, cut to what it decides on the judged grid.

    logits (K,h,w), and labels (h,w) uint8, their argmax, are of the whole tile, on the generator's own grid;
    again (1,h,w) as look gives it; correctness (1,1,h,w) and realness (1,1,a,b) as in Judgement.
    """

    logits: Tensor
    labels: Tensor
    shown: ShownMask
    again: Tensor
    correctness: Tensor
    realness: Tensor


@dataclass
class ImageSums:
    """What the tiles of an image come to so far, all on the device: mask HxW uint8; correctness (h,w); sums
    over all cells, float64; shown and probabilities (K,a,b) on the working size's judged grid."""

    mask: Tensor
    correctness: Tensor
    sums: ClassSums
    own: ClassSums
    again: ClassSums
    correctness_logits: Tensor
    realness: Tensor
    cells: int
    shown: Tensor
    probabilities: Tensor


def prepare_scaled(bundle: Bundle, image: np.ndarray) -> ScaledImage:
    """An image HxWx3 uint8 at the scale of the bundle, which has one."""
    spec = bundle.spec
    assert spec.scale is not None
    shape = image.shape[0], image.shape[1]
    pixels = resize_image(image, size_at(spec.scale, shape))
    return ScaledImage(pixels, resize_image(image, spec.working_size), shape)


def tiling_of(bundle: Bundle) -> Tiling | None:
    """How the bundle's networks see images; None where each is fitted to the working size."""
    spec, generator = bundle.spec, bundle.generator
    if spec.scale is None or spec.tile is None or spec.margin is None:
        return None
    start = math.lcm(generator.size_multiple, generator.output_stride)
    border = math.lcm(generator.output_stride, generator.judged_stride)
    smallest = spec.tile if has_one_size(spec) else (1, 1)
    return Tiling(spec.scale, spec.tile, spec.margin, (start, border), smallest)


def tiles_of(bundle: Bundle, shape: tuple[int, int]) -> Tiles:
    """The tiles of an image that is so large at the bundle's scale, which it has."""
    tiling = tiling_of(bundle)
    assert tiling is not None
    return tiling.at_scale(shape)


def judge_scaled(
    bundle: Bundle, images: Sequence[ScaledImage], device: str, pixels_at_once: int = PIXELS_AT_ONCE
) -> list[FinishedMask]:
    """One mask and one score for each image; tiles of several images share passes of so many pixels.

    Each pass is one copy to the device, and all that is said of the images one copy back. Raises
    DeviceMemoryError when not even one tile fits, DeviceError.
    """
    sums = add_up(bundle, images, device, pixels_at_once)
    what = f"{len(images)} images at once"
    return on_device(device, what, lambda: _with_whole(bundle, images, sums, device))


def add_up(
    bundle: Bundle, images: Sequence[ScaledImage], device: str, pixels_at_once: int = PIXELS_AT_ONCE
) -> list[ImageSums]:
    """What all tiles of each image come to. Raises as `judge_scaled`."""
    what = f"what {len(images)} images come to"
    sums = on_device(device, what, lambda: [_nothing_yet(bundle, image, device) for image in images])
    for number, tile, view in _views(bundle, images, device, pixels_at_once):
        add = partial(_add, bundle, sums[number], images[number], tile, view)
        on_device(device, what, add)
    return sums


def _nothing_yet(bundle: Bundle, image: ScaledImage, device: str) -> ImageSums:
    stride, n_classes = bundle.generator.judged_stride, len(bundle.spec.classes)
    grid = [-(-side // stride) for side in image.pixels.shape[:2]]
    fitted = [side // stride for side in bundle.spec.working_size]
    none = torch.zeros(1, n_classes, dtype=torch.float64, device=device)
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    return ImageSums(
        mask=torch.empty(image.shape, dtype=torch.uint8, device=device),
        correctness=torch.empty(grid, device=device),
        sums=ClassSums(none, none, none),
        own=ClassSums(none, none, none),
        again=ClassSums(none, none, none),
        correctness_logits=nothing,
        realness=nothing,
        cells=0,
        shown=torch.zeros(n_classes, *fitted, device=device),
        probabilities=torch.zeros(n_classes, *fitted, device=device),
    )


def _views(
    bundle: Bundle, images: Sequence[ScaledImage], device: str, pixels_at_once: int
) -> Iterator[tuple[int, Tile, TileView]]:
    """Each tile of each image after both networks; a pass that is too much for the device is halved."""
    cuts = [tiles_of(bundle, image.size) for image in images]
    tiles = [(number, tile) for number, tiles in enumerate(cuts) for tile in tiles.tiles]
    sizes = [cuts[number].size for number, _ in tiles]
    for together in in_passes(pixels_at_once, sizes):
        chosen = [tiles[index] for index in together]
        pixels = [pixels_of(images[number].pixels, tile, cuts[number].size) for number, tile in chosen]
        for (number, tile), view in zip(chosen, _look(bundle, pixels, chosen, device), strict=True):
            yield number, tile, view


def _look(
    bundle: Bundle, pixels: list[np.ndarray], tiles: list[tuple[int, Tile]], device: str
) -> list[TileView]:
    try:
        return on_device(
            device, f"{len(pixels)} tiles at once", lambda: _look_at(bundle, pixels, tiles, device)
        )
    except DeviceMemoryError:
        if len(pixels) == 1:
            raise
    half = len(pixels) // 2
    first = _look(bundle, pixels[:half], tiles[:half], device)
    return first + _look(bundle, pixels[half:], tiles[half:], device)


@torch.inference_mode()
def _look_at(
    bundle: Bundle, pixels: list[np.ndarray], tiles: list[tuple[int, Tile]], device: str
) -> list[TileView]:
    batch = normalised(bundle, stack_to_device(pixels, device))
    logits = class_logits(generate(bundle, batch, device))
    labels = logits.argmax(dim=1)
    looks = look(bundle, batch, logits, labels, device)
    stride = bundle.generator.judged_stride
    masks = logits, labels.to(torch.uint8)
    return [_decided(row, tile.within(stride), masks, looks) for row, (_, tile) in enumerate(tiles)]


def _decided(
    row: int,
    decided: tuple[slice, slice],
    masks: tuple[Tensor, Tensor],
    looks: tuple[ShownMask, Tensor, Judgement],
) -> TileView:
    """One tile of a batch, cut to what it decides; masks: the batch's logits and their argmax; looks: as look
    gives them."""
    at, (shown, again, judgement) = (slice(row, row + 1), slice(None), *decided), looks
    return TileView(
        masks[0][row],
        masks[1][row],
        ShownMask(shown.one_hot[at], shown.probabilities[at]),
        again[row : row + 1, *decided],
        judgement.correctness[at],
        _same_part(judgement.realness[row : row + 1], shown.one_hot, at),
    )


def _same_part(coarse: Tensor, fine: Tensor, at: tuple[slice, ...]) -> Tensor:
    """What lies under a part of a finer map of the same image, one cell at least."""
    ends = []
    for axis in (2, 3):
        cells, ratio = at[axis], coarse.shape[axis] / fine.shape[axis]
        first = min(round(cells.start * ratio), coarse.shape[axis] - 1)
        ends.append(slice(first, max(first + 1, round(cells.stop * ratio))))
    return coarse[:, :, ends[0], ends[1]]


@torch.inference_mode()
def _add(bundle: Bundle, sums: ImageSums, image: ScaledImage, tile: Tile, view: TileView) -> None:
    """What one more tile says, on top of the others."""
    correctness = view.correctness.float().sigmoid()
    cells = correctness.numel()
    of_tile = class_sums(view.shown.one_hot, view.shown.probabilities, correctness)
    sums.sums += _exactly(of_tile)
    sums.own += _exactly(own_sums(view.shown.one_hot, view.shown.probabilities, bundle.spec.belief))
    sums.again += _exactly(agreement_sums(view.shown.one_hot, view.again))
    sums.correctness_logits = sums.correctness_logits + view.correctness.float().sum()
    sums.realness = sums.realness + adversarial_score(view.realness)[0].double() * cells
    sums.cells += cells
    _place_mask(bundle, sums.mask, image.size, tile, (view.logits, view.labels))
    down, across = tile.cells(bundle.generator.judged_stride)
    sums.correctness[down, across] = correctness[0, 0]
    _shrink_into(sums, down, across, view.shown)


def _exactly(sums: ClassSums) -> ClassSums:
    """As they are added up over many tiles."""
    return ClassSums(*(part.double() for part in vars(sums).values()))


def _place_mask(
    bundle: Bundle, mask: Tensor, size: tuple[int, int], tile: Tile, maps: tuple[Tensor, Tensor]
) -> None:
    """What a tile decides of the mask, from its logits and their argmax."""
    stride = bundle.generator.output_stride
    (top, vertical), (left, horizontal) = (
        _pixels_decided(span, length, whole, stride)
        for span, length, whole in zip((tile.down, tile.across), size, mask.shape, strict=True)
    )
    part = part_of_mask(*maps, Part(vertical, horizontal))
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part


def _pixels_decided(
    span: Span, length: int, pixels: int, stride: int
) -> tuple[int, tuple[float, int, int, int]]:
    """Which of the image's pixels along an axis a tile decides: the first, and the axis as Part takes it."""
    first, end = (round(place * pixels / length) for place in (span.first, span.end))
    return first, (length / pixels / stride, first, span.start // stride, end - first)


def _shrink_into(sums: ImageSums, down: slice, across: slice, shown: ShownMask) -> None:
    """Add the tile's mask and probabilities to those at the working size, by the area that cells share."""
    grid, fitted = sums.correctness.shape, sums.shown.shape[1:]
    device = sums.shown.device
    rows = _shares(grid[0], fitted[0], down, device)
    columns = _shares(grid[1], fitted[1], across, device)
    sums.shown += rows @ shown.one_hot[0].float() @ columns.T
    sums.probabilities += rows @ shown.probabilities[0].float() @ columns.T


def _shares(grid: int, fitted: int, part: slice, device: torch.device) -> Tensor:
    """(fitted, n) how much of each fitted cell is covered by each of n cells of a grid as long; rows of all
    the grid's cells sum to 1."""
    edges = torch.arange(part.start, part.stop + 1, dtype=torch.float64, device=device) * (fitted / grid)
    cells = torch.arange(fitted, dtype=torch.float64, device=device)[:, None]
    overlap = torch.minimum(edges[1:], cells + 1) - torch.maximum(edges[:-1], cells)
    return overlap.clamp(min=0).float()


@torch.inference_mode()
def _with_whole(
    bundle: Bundle, images: Sequence[ScaledImage], sums: Sequence[ImageSums], device: str
) -> list[FinishedMask]:
    """The masks with what the judge says of each image as a whole."""
    whole = _judge_whole(bundle, images, sums, device)
    said = [_summed_up(bundle, whole, row, image) for row, image in enumerate(sums)]
    found = iter(fetch_together([tensor for one in said for tensor in one]))
    return [
        FinishedMask(mask.numpy(), parts, score, by_class, correctness.numpy())
        for mask, parts, score, by_class, correctness in zip(*[found] * 5, strict=True)
    ]


@torch.inference_mode()
def _judge_whole(
    bundle: Bundle, images: Sequence[ScaledImage], sums: Sequence[ImageSums], device: str
) -> Judgement:
    batch = normalised(bundle, stack_to_device([image.whole for image in images], device))
    labels = torch.stack([image.shown for image in sums]).argmax(dim=1)
    probabilities = torch.stack([image.probabilities for image in sums]).clamp(min=SMALLEST_PROBABILITY)
    shown = shown_as(labels, probabilities.log())
    with autocast(device):
        return bundle.discriminator.judge(shown_image(batch, (labels.shape[1], labels.shape[2])), shown)


def _summed_up(bundle: Bundle, whole: Judgement, row: int, image: ImageSums) -> tuple[Tensor, ...]:
    """The fields of an image's FinishedMask, on the device."""
    judge, rule = bundle.discriminator.judge, bundle.spec.rule
    ious, shares = class_ious(image.sums), image.sums.shown / image.sums.shown.sum()
    presence = whole.presence[row : row + 1].float().sigmoid()
    parts = in_order(
        {
            "expected_iou": iou_logit(expected_iou(ious, shares, presence, rule)),
            "correctness": (image.correctness_logits / image.cells)[None],
            "realness": (image.realness / image.cells)[None],
            "image_iou": whole.image_iou[row : row + 1],
            "familiarity": whole.familiarity[row : row + 1],
            "agreement": iou_logit(agreement(image.again)),
            **own_parts(image.own, shares, presence, rule),
        }
    )
    score = routing_score(parts, judge.combination)[0]
    by_class = ious.where(shares > 0, torch.nan)[0].float()
    return image.mask, parts[0], score, by_class, image.correctness
