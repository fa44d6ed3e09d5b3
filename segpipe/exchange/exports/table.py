"""The table of export formats: a new one is a file beside this one and a line here.

Imports nothing heavy, because the command line lists the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from segpipe.errors import RunError

if TYPE_CHECKING:
    from segpipe.exchange.exports.items import Item, Target

    # Takes the items one by one and writes last what lists them.
    Write = Callable[[Iterable[Item], Target], None]


@dataclass(frozen=True)
class ExportFormat:
    """What a format is, in a few words, and the module whose function `write` writes it."""

    summary: str
    module: str


EXPORTS = {
    "indexed-png": ExportFormat("what train takes", "segpipe.exchange.exports.indexed_png"),
    "coco": ExportFormat("COCO with run lengths", "segpipe.exchange.exports.coco"),
    "voc": ExportFormat("PASCAL VOC 2012", "segpipe.exchange.exports.voc"),
    "cityscapes": ExportFormat("Cityscapes' folders", "segpipe.exchange.exports.cityscapes"),
    "yolo-seg": ExportFormat("Ultralytics' polygons", "segpipe.exchange.exports.yolo_seg"),
    "cvat": ExportFormat("CVAT for images 1.1", "segpipe.exchange.exports.cvat"),
}


def writer(name: str) -> Write:
    """The function that writes a format. RunError for an unknown name, with those that are known."""
    if name not in EXPORTS:
        raise RunError(f"there is no export format {name!r}: take one of {', '.join(EXPORTS)}")
    write: Write = import_module(EXPORTS[name].module).write
    return write
