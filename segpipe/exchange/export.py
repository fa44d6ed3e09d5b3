"""`segpipe export`: the accepted masks of an OUTPUT as a data set in a format of one's choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.exchange import formats
from segpipe.exchange.items import Item, Target, accepted_items, index_csv
from segpipe.images import class_palette
from segpipe.manifests.store import classes_of
from segpipe.redaction import redact

Format = Literal["indexed-png", "coco", "voc", "cityscapes", "yolo-seg", "cvat"]
WRITERS: dict[Format, formats.Write] = {
    "indexed-png": formats.write_indexed_png,
    "coco": formats.write_coco,
    "voc": formats.write_voc,
    "cityscapes": formats.write_cityscapes,
    "yolo-seg": formats.write_yolo_seg,
    "cvat": formats.write_cvat,
}
INDEX = "images.csv"


@dataclass(frozen=True)
class ExportResult:
    """Where the data set is and how many images it has."""

    target: str
    layout: str
    split: str
    images: int


def export(output: str, target: str, layout: Format, split: str) -> ExportResult:
    """Write the accepted images with their final masks; images.csv, which says what each file is, comes last.

    Raises RunError (nothing accepted, a target that is not empty), NotFoundError, StorageError.
    """
    output, root = storage.normalise(output), storage.normalise(target)
    _require_empty(root)
    classes = classes_of(output)
    written: list[Item] = []
    meaning = Target(root, split, classes, class_palette(max(len(classes), 1)))
    WRITERS[layout](_remembered(output, written), meaning)
    meaning.put(INDEX, index_csv(written))
    return ExportResult(redact(root), layout, split, len(written))


def _remembered(output: str, written: list[Item]) -> Iterator[Item]:
    """The items, and without their pixels what the index needs of them."""
    for item in accepted_items(output):
        yield item
        written.append(item.without_pixels())
    if not written:
        raise RunError(f"nothing is accepted under {redact(output)}: there is nothing to export")


def _require_empty(root: str) -> None:
    try:
        first = next(storage.list_objects(root), None)
    except NotFoundError:
        return
    if first is not None:
        raise RunError(f"{redact(root)} is not empty: export to a folder of its own")
