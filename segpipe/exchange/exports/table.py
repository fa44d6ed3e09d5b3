"""The table of export formats: a new one is a file beside this one and a line here.

Imports nothing heavy, because the command line lists the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from segpipe.kinds import Kind, module_of

if TYPE_CHECKING:
    from segpipe.exchange.exports.items import Item, Target

    # Takes the items one by one and writes last what lists them.
    Write = Callable[[Iterable[Item], Target], None]

# Each module has write, a Write.
EXPORTS = {
    "indexed-png": Kind("is what train takes", "segpipe.exchange.exports.indexed_png"),
    "coco": Kind("with run lengths", "segpipe.exchange.exports.coco"),
    "voc": Kind("as PASCAL VOC 2012", "segpipe.exchange.exports.voc"),
    "cityscapes": Kind("with ids of its own", "segpipe.exchange.exports.cityscapes"),
    "yolo-seg": Kind("as Ultralytics' polygons", "segpipe.exchange.exports.yolo_seg"),
    "cvat": Kind("for images 1.1", "segpipe.exchange.exports.cvat"),
}


def writer(name: str) -> Write:
    """The function that writes a format. RunError for an unknown name, with those that are known."""
    write: Write = module_of(EXPORTS, name, "export format").write
    return write
