"""Which images a model has learnt from, so that no promise rests on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from segpipe import storage
from segpipe.datasets import Dataset, Sample, read_image
from segpipe.errors import NotFoundError
from segpipe.images import pixel_digest
from segpipe.training.labelled_pixels import READ_THREADS

FILE = "seen_images.txt"


def keep_seen(model_url: str, digests: Collection[str]) -> None:
    """Write the digests of the images' pixels, a line each, into the model's folder. StorageError."""
    lines = "".join(f"{digest}\n" for digest in sorted(set(digests)))
    storage.put(storage.join(model_url, FILE), lines.encode())


def seen_images(model_url: str) -> frozenset[str]:
    """The digests; none for a model that kept none (of an older segpipe). StorageError."""
    folder = storage.normalise(model_url)
    try:
        return frozenset(storage.read_bytes(storage.join(folder, FILE)).decode().split())
    except NotFoundError:
        return frozenset()


def image_digests(dataset: Dataset, samples: Sequence[Sample]) -> list[str]:
    """The digest of each image's pixels. Raises DatasetError, StorageError."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda sample: pixel_digest(read_image(dataset, sample)), samples))
