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


def first_seen(dataset: Dataset, samples: Sequence[Sample], seen: frozenset[str]) -> str | None:
    """URI of the first image whose pixels are among those seen, None when none is. Raises DatasetError."""
    if not seen:
        return None
    with ThreadPoolExecutor(READ_THREADS) as pool:
        uris = [sample.image_uri for sample in samples]
        digests = pool.map(lambda sample: pixel_digest(read_image(dataset, sample)), samples)
        return next((uri for uri, digest in zip(uris, digests, strict=True) if digest in seen), None)


def image_digests(dataset: Dataset, samples: Sequence[Sample]) -> frozenset[str]:
    """The digests of the images' pixels. Raises DatasetError, StorageError."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return frozenset(pool.map(lambda sample: pixel_digest(read_image(dataset, sample)), samples))
