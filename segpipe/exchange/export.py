"""`segpipe export`: the accepted masks of an OUTPUT as a data set in a format of one's choice."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from segpipe import storage
from segpipe.csv_text import csv_text
from segpipe.errors import NotFoundError, RunError
from segpipe.exchange.exports.items import Item, LeftOut, Target, accepted_items
from segpipe.exchange.exports.table import writer
from segpipe.exchange.files import LEFT_OUT, UNFINISHED
from segpipe.images import class_palette
from segpipe.manifests.store import classes_of
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

INDEX = "images.csv"
_UNFINISHED_TEXT = "This export has not ended: it may lack images. Do not use it; export again elsewhere.\n"


@dataclass(frozen=True)
class ExportResult:
    """Where the data set is, how many images it has, and how many accepted ones it lacks."""

    target: str
    layout: str
    split: str
    images: int
    left_out: int


@dataclass
class _Done:
    written: list[Item] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def export(output: str, target: str, layout: str, split: str) -> ExportResult:
    """Write the accepted images with their final masks; images.csv, which says what each file is, comes last.

    What cannot be exported is named in left_out.csv and in the log. Until all is written, TARGET holds
    export-unfinished.txt. Raises RunError (an unknown format, nothing accepted, a target that is not empty),
    NotFoundError, StorageError.
    """
    write = writer(layout)
    output, root = storage.normalise(output), storage.normalise(target)
    _require_empty(root)
    classes = classes_of(output)
    meaning, done = Target(root, split, classes, class_palette(max(len(classes), 1))), _Done()
    write(_remembered(output, meaning, done), meaning)
    if done.left_out:
        meaning.put(LEFT_OUT, _left_out_csv(done.left_out))
    meaning.put(INDEX, _index_csv(done.written))
    storage.delete(storage.join(root, UNFINISHED))
    return ExportResult(redact(root), layout, split, len(done.written), len(done.left_out))


def _remembered(output: str, target: Target, done: _Done) -> Iterator[Item]:
    """The items, and without their pixels what the index needs of them; what is left out is said."""
    for item in accepted_items(output):
        if isinstance(item, LeftOut):
            logger.warning("%s is left out: %s", redact(item.image_uri), item.reason)
            done.left_out.append(item)
            continue
        if not done.written:
            target.put(UNFINISHED, _UNFINISHED_TEXT)
        yield item
        done.written.append(item.without_pixels())
    if not done.written:
        raise RunError(_nothing_to_export(output, done.left_out))


def _nothing_to_export(output: str, left_out: list[LeftOut]) -> str:
    if not left_out:
        return f"nothing is accepted under {redact(output)}: there is nothing to export"
    first = f"{redact(left_out[0].image_uri)}: {left_out[0].reason}"
    return f"none of {len(left_out)} images under {redact(output)} can be exported ({first})"


def _require_empty(root: str) -> None:
    try:
        first = next(storage.list_objects(root), None)
    except NotFoundError:
        return
    if first is None:
        return
    if storage.exists(storage.join(root, UNFINISHED)):
        raise RunError(
            f"{redact(root)} holds an export that did not end: remove the folder and export again, or export "
            "to another one"
        )
    raise RunError(f"{redact(root)} is not empty: export to a folder of its own")


def _index_csv(items: Iterable[Item]) -> bytes:
    """Which file is which image."""
    names = ("key", "image_uri", "image_etag", "mask_sha256")
    return csv_text(names, ((item.key, item.image_uri, item.image_etag, item.mask_sha256) for item in items))


def _left_out_csv(left_out: Iterable[LeftOut]) -> bytes:
    names = ("image_uri", "image_etag", "reason")
    return csv_text(names, ((one.image_uri, one.image_etag, one.reason) for one in left_out))
