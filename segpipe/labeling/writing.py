"""An encoded image's files to storage, which makes its row true."""

from __future__ import annotations

from time import perf_counter

from segpipe import storage
from segpipe.errors import StorageError
from segpipe.labeling.items import EncodedImage, FailedImage, Outcome
from segpipe.labeling.legs import Legs
from segpipe.labeling.rows import Target, failed_row


def write_image(item: EncodedImage | FailedImage, target: Target) -> Outcome:
    """Store the files and give the row; what fails becomes a failed row. The run must hold its claim."""
    if isinstance(item, FailedImage):
        return _failed_outcome(item, target)
    started = perf_counter()
    try:
        for file in item.files:
            storage.put(file.uri, file.data)
    except StorageError as error:
        legs = item.legs + Legs(write=perf_counter() - started)
        failed = FailedImage(item.seen, item.height, item.width, "storage", error, legs)
        return _failed_outcome(failed, target)
    return Outcome(item.row, item.legs + Legs(write=perf_counter() - started), None)


def _failed_outcome(item: FailedImage, target: Target) -> Outcome:
    return Outcome(failed_row(item, target), item.legs, item.error)
