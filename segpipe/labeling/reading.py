"""From a planned image to its bytes, or failed with a reason."""

from __future__ import annotations

from time import perf_counter

from segpipe import storage
from segpipe.errors import ImageError, StorageError
from segpipe.labeling.items import FailedImage, FetchedImage, PlannedImage, SeenImage
from segpipe.labeling.legs import Legs


def fetch_image(image: PlannedImage, max_bytes: int) -> FetchedImage | FailedImage:
    """Read one image's object, unless it was listed with more than max_bytes."""
    started = perf_counter()
    planned = SeenImage(image, image.image_etag, image.image_bytes)
    if image.image_bytes > max_bytes:
        return FailedImage(planned, None, None, "too_large", _too_many_bytes(image, max_bytes), Legs())
    try:
        blob = storage.read(image.image_uri)
    except StorageError as error:
        return FailedImage(planned, None, None, "storage", error, Legs(read=perf_counter() - started))
    seen = SeenImage(image, blob.etag, len(blob.data))
    return FetchedImage(seen, blob.data, Legs(read=perf_counter() - started))


def _too_many_bytes(image: PlannedImage, max_bytes: int) -> ImageError:
    return ImageError(
        "too_large", f"{image.image_bytes} bytes are over {max_bytes}; shrink it or raise the limit"
    )
