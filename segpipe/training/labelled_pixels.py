"""A labelled split at the working size, mapped from disk: any batch is one copy away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segpipe.concurrency import Budget
from segpipe.datasets import Dataset, Sample, list_samples, read_sample
from segpipe.errors import DatasetError
from segpipe.images import MAX_PIXELS
from segpipe.models.preprocess import resize_image, resize_mask
from segpipe.progress import track

READ_THREADS = 4

Read = Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class LabelledPixels:
    """images (N,3,H,W) uint8 and masks (N,H,W) uint8 class indices at the working size; weights (N,) > 0: how
    often each is to be learnt from, 1 is once per epoch."""

    images: np.ndarray
    masks: np.ndarray
    weights: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) uint8 and (B,H,W) uint8 of the given rows."""
        rows = indices.numpy()
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.masks[rows])


def reads_of(dataset: Dataset, samples: Sequence[Sample]) -> list[Read]:
    """How to read each sample, in the same order; at once so many pixels as one image may have."""
    in_work = Budget(MAX_PIXELS)
    return [partial(read_sample, dataset, sample, in_work) for sample in samples]


@contextmanager
def load_split(dataset: Dataset, split: str, working_size: tuple[int, int]) -> Iterator[LabelledPixels]:
    """As `load_samples`, of all samples of a split."""
    with load_samples(dataset, list_samples(dataset, split), working_size) as labelled:
        yield labelled


@contextmanager
def load_samples(
    dataset: Dataset, samples: Sequence[Sample], working_size: tuple[int, int]
) -> Iterator[LabelledPixels]:
    """The samples' pixels, each image as often as any other. Raises DatasetError."""
    reads = reads_of(dataset, samples)
    with load_pixels(reads, [1.0] * len(reads), working_size) as labelled:
        yield labelled


@contextmanager
def load_pixels(
    labelled: Sequence[Read], weights: Sequence[float], working_size: tuple[int, int]
) -> Iterator[LabelledPixels]:
    """The pixels of images and masks that can be read, kept in temporary files while the context lasts.

    Each read gives an image HxWx3 uint8 and its mask HxW uint8; what it raises passes through.
    """
    # Nameless files: they go when the process goes, also when it is killed.
    with tempfile.TemporaryFile() as image_file, tempfile.TemporaryFile() as mask_file:
        images = np.memmap(image_file, np.uint8, "w+", shape=(len(labelled), 3, *working_size))
        masks = np.memmap(mask_file, np.uint8, "w+", shape=(len(labelled), *working_size))
        _fill(images, masks, labelled, working_size)
        yield LabelledPixels(images, masks, torch.tensor(weights, dtype=torch.float64))


def _fill(images: np.ndarray, masks: np.ndarray, labelled: Sequence[Read], size: tuple[int, int]) -> None:
    def shrink(read: Read) -> tuple[np.ndarray, np.ndarray]:
        image, mask = read()
        return resize_image(image, size).transpose(2, 0, 1), resize_mask(mask, size)

    with ThreadPoolExecutor(READ_THREADS) as pool, track(len(labelled), "read labelled images") as progress:
        for row, (image, mask) in enumerate(pool.map(shrink, labelled)):
            images[row], masks[row] = image, mask
            progress.advance()


def pixel_counts(masks: np.ndarray, n_classes: int) -> Tensor:
    """(K,) how many pixels each class has; other values (the ignore index) are not counted.

    Raises DatasetError when there is none at all.
    """
    counts = np.zeros(256, dtype=np.int64)
    for mask in masks:
        counts += np.bincount(mask.ravel(), minlength=256)
    if not counts[:n_classes].any():
        raise DatasetError("no training image has a labelled pixel: every pixel is the ignore index")
    return torch.from_numpy(counts[:n_classes])
