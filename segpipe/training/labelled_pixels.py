"""A labelled split as the networks see it, on disk or read anew: any part of any image is one copy away."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from segpipe.concurrency import Budget
from segpipe.datasets import Dataset, Sample, list_samples, open_sample
from segpipe.errors import DatasetError, StorageError
from segpipe.images import MAX_PIXELS
from segpipe.inspection.looks import value_counts
from segpipe.models.bundle import ModelSpec
from segpipe.models.preprocess import resize_image, resize_mask
from segpipe.progress import track
from segpipe.tiles import size_at
from segpipe.training.rare_classes import Places, RareClasses, rare_classes, sample_places

logger = logging.getLogger(__name__)
READ_THREADS = 4

Pair = tuple[np.ndarray, np.ndarray]
# An image HxWx3 uint8 and its mask HxW uint8; in work for as long as it is open.
Read = Callable[[], AbstractContextManager[Pair]]


@dataclass(frozen=True)
class LabelledPixels:
    """N images and masks of class indices at the networks' scale.

    pixels(row): image 3xHxW uint8 and mask HxW uint8. sizes (N,2) int64: their heights and widths. weights
    (N,) > 0: how often each is to be learnt from, 1 is once per epoch. counts (K,) int64: pixels of each
    class in all of them. ignore_index: what masks hold outside an image. fitted: all are of the working size.
    cached_bytes: how much disk they take.
    """

    pixels: Callable[[int], Pair]
    sizes: Tensor
    weights: Tensor
    counts: Tensor
    rare: RareClasses
    ignore_index: int
    fitted: bool
    cached_bytes: int

    def __len__(self) -> int:
        return len(self.sizes)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) uint8 and (B,H,W) uint8: whole images, which must be of one size."""
        height, width = self.sizes[rows[0]].tolist()
        return self.cut(rows, torch.zeros(len(rows), 2, dtype=torch.int64), (height, width))

    def cut(self, rows: Tensor, corners: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B,3,h,w) uint8 and (B,h,w) uint8 of windows of one size whose top left pixels are corners (B,2).

        Outside its image a window is black and ignored.
        """
        images = torch.zeros(len(rows), 3, *size, dtype=torch.uint8)
        masks = torch.full((len(rows), *size), self.ignore_index, dtype=torch.uint8)
        for number, (row, corner) in enumerate(zip(rows.tolist(), corners.tolist(), strict=True)):
            image, mask = self.pixels(row)
            (y, to_y), (x, to_x) = (
                _overlap(start, length, whole)
                for start, length, whole in zip(corner, size, mask.shape, strict=True)
            )
            images[number, :, to_y, to_x] = torch.from_numpy(image[:, y, x].copy())
            masks[number, to_y, to_x] = torch.from_numpy(mask[y, x].copy())
        return images, masks


def _overlap(start: int, length: int, whole: int) -> tuple[slice, slice]:
    """Where a window from start lies in an image, along one side, and the same as seen from the window."""
    first, last = min(max(start, 0), whole), min(max(start + length, 0), whole)
    return slice(first, last), slice(first - start, last - start)


def reads_of(dataset: Dataset, samples: Sequence[Sample]) -> list[Read]:
    """How to read each sample, in the same order; at once so many pixels as one image may have."""
    in_work = Budget(MAX_PIXELS)
    return [partial(open_sample, dataset, sample, in_work) for sample in samples]


@contextmanager
def load_split(dataset: Dataset, split: str, spec: ModelSpec, cache_bytes: int) -> Iterator[LabelledPixels]:
    """As `load_samples`, of all samples of a split."""
    with load_samples(dataset, list_samples(dataset, split), spec, cache_bytes) as labelled:
        yield labelled


@contextmanager
def load_samples(
    dataset: Dataset, samples: Sequence[Sample], spec: ModelSpec, cache_bytes: int
) -> Iterator[LabelledPixels]:
    """The samples' pixels, each image as often as any other. Raises as `load_pixels`."""
    reads = reads_of(dataset, samples)
    with load_pixels(reads, [1.0] * len(reads), spec, cache_bytes) as labelled:
        yield labelled


@contextmanager
def load_pixels(
    reads: Sequence[Read], weights: Sequence[float], spec: ModelSpec, cache_bytes: int
) -> Iterator[LabelledPixels]:
    """The pixels of images and masks that can be read, at the networks' scale, while the context lasts.

    So many bytes of them are kept in a temporary file; what does not fit is read anew whenever it is asked
    for. What a read raises passes through; StorageError when the disk is full.
    """
    # A nameless file: it goes when the process goes, also when it is killed.
    with tempfile.TemporaryFile() as file:
        cache = _Cache(file, cache_bytes)
        found = _look_through(reads, spec, cache)
        if left := len(found) - len(cache.offsets):
            logger.warning(
                "%d of %d labelled images do not fit into %d bytes of disk and are read anew for every view, "
                "which is slow: --cache-bytes allows more",
                left,
                len(found),
                cache_bytes,
            )
        counts = sum((one.counts for one in found), np.zeros(len(spec.classes), np.int64))
        # Those that are asked for one after the other are often parts of one image.
        anew = lru_cache(maxsize=1)(partial(_read_anew, reads, spec))
        yield LabelledPixels(
            pixels=partial(_pixels, cache.mapped(), cache.offsets, [one.size for one in found], anew),
            sizes=torch.tensor([one.size for one in found], dtype=torch.int64).view(-1, 2),
            weights=torch.tensor(weights, dtype=torch.float64),
            counts=torch.from_numpy(counts),
            rare=rare_classes(counts, [one.places for one in found]),
            ignore_index=spec.ignore_index,
            fitted=spec.scale is None,
            cached_bytes=cache.size,
        )


@dataclass(frozen=True)
class _Found:
    """What is remembered of a mask: counts (K,) of its pixels."""

    size: tuple[int, int]
    counts: np.ndarray
    places: Places


class _Cache:
    """Images and masks one after the other in a file, as far as it may grow; offsets: of those kept."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self.offsets: dict[int, int] = {}
        self._file = file
        self._most_bytes = most_bytes
        self.size = 0
        self._writing = threading.Lock()

    def keep(self, row: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Write image 3xHxW and mask HxW unless there is no room. Raises StorageError."""
        with self._writing:
            if self.size + image.size + mask.size > self._most_bytes:
                return
            with _room_for_it():
                self._file.write(np.ascontiguousarray(image).data)
                self._file.write(np.ascontiguousarray(mask).data)
            self.offsets[row] = self.size
            self.size += image.size + mask.size

    def mapped(self) -> np.ndarray:
        """All that was kept, as bytes. Raises StorageError."""
        with _room_for_it():
            self._file.flush()
        return np.memmap(self._file, np.uint8, "r") if self.size else np.zeros(0, np.uint8)


@contextmanager
def _room_for_it() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the labelled images do not fit into {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to "
            "a larger disk, or --cache-bytes to less"
        ) from error


def _look_through(reads: Sequence[Read], spec: ModelSpec, cache: _Cache) -> list[_Found]:
    def look(row: int) -> _Found:
        with reads[row]() as (image, mask):
            image, mask = _at_scale(image, mask, spec)
            cache.keep(row, image, mask)
        counts = value_counts(mask)[: len(spec.classes)]
        # By row, so that the threads' order changes nothing.
        places = sample_places(mask, counts, np.random.default_rng(row))
        return _Found((mask.shape[0], mask.shape[1]), counts, places)

    found = []
    with ThreadPoolExecutor(READ_THREADS) as pool, track(len(reads), "read labelled images") as progress:
        for one in pool.map(look, range(len(reads))):
            found.append(one)
            progress.advance()
    return found


def _at_scale(image: np.ndarray, mask: np.ndarray, spec: ModelSpec) -> Pair:
    shape = mask.shape[0], mask.shape[1]
    size = spec.working_size if spec.scale is None else size_at(spec.scale, shape)
    return resize_image(image, size).transpose(2, 0, 1), resize_mask(mask, size)


def _read_anew(reads: Sequence[Read], spec: ModelSpec, row: int) -> Pair:
    with reads[row]() as (image, mask):
        return _at_scale(image, mask, spec)


def _pixels(
    cached: np.ndarray,
    offsets: dict[int, int],
    sizes: list[tuple[int, int]],
    anew: Callable[[int], Pair],
    row: int,
) -> Pair:
    """Image 3xHxW and mask HxW of a row."""
    if row not in offsets:
        return anew(row)
    (height, width), start = sizes[row], offsets[row]
    end = start + 3 * height * width
    image = cached[start:end].reshape(3, height, width)
    return image, cached[end : end + height * width].reshape(height, width)


def class_counts(labelled: LabelledPixels) -> Tensor:
    """(K,) how many pixels each class has. Raises DatasetError when there is none at all."""
    if not labelled.counts.any():
        raise DatasetError("no training image has a labelled pixel: every pixel is the ignore index")
    return labelled.counts
