"""A labelled split at the working size, mapped from disk: any batch is one copy away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segpipe.datasets import Dataset, Sample, list_samples, read_sample
from segpipe.errors import DatasetError
from segpipe.models.preprocess import resize_image, resize_mask
from segpipe.progress import track

READ_THREADS = 4
SIZE_MULTIPLE = 32
LARGEST_WORKING_AREA = 256 * 352


@dataclass(frozen=True)
class LabelledPixels:
    """images (N,3,H,W) uint8 and masks (N,H,W) uint8 class indices at the working size."""

    images: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) uint8 and (B,H,W) uint8 of the given rows."""
        rows = indices.numpy()
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.masks[rows])


def choose_working_size(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """The working size (height, width) for images of these sizes: their upper-quartile area, at most 256x352
    pixels, in their median shape, as multiples of 32."""
    sizes = np.asarray(shapes, dtype=float)
    area = min(float(np.quantile(sizes.prod(axis=1), 0.75)), LARGEST_WORKING_AREA)
    ratio = float(np.median(sizes[:, 0] / sizes[:, 1]))
    height, width = np.sqrt(area * ratio), np.sqrt(area / ratio)
    rounded = [max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE) for side in (height, width)]
    return rounded[0], rounded[1]


@contextmanager
def load_pixels(dataset: Dataset, split: str, working_size: tuple[int, int]) -> Iterator[LabelledPixels]:
    """A split's pixels, kept in temporary files while the context lasts. Raises DatasetError."""
    samples = list_samples(dataset, split)
    # Nameless files: they go when the process goes, also when it is killed.
    with tempfile.TemporaryFile() as image_file, tempfile.TemporaryFile() as mask_file:
        images = np.memmap(image_file, np.uint8, "w+", shape=(len(samples), 3, *working_size))
        masks = np.memmap(mask_file, np.uint8, "w+", shape=(len(samples), *working_size))
        _fill(images, masks, dataset, samples, working_size)
        yield LabelledPixels(images, masks)


def _fill(
    images: np.ndarray, masks: np.ndarray, dataset: Dataset, samples: list[Sample], size: tuple[int, int]
) -> None:
    def read(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, mask = read_sample(dataset, sample)
        return resize_image(image, size).transpose(2, 0, 1), resize_mask(mask, size)

    with ThreadPoolExecutor(READ_THREADS) as pool, track(len(samples), "read labelled images") as progress:
        for row, (image, mask) in enumerate(pool.map(read, samples)):
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
