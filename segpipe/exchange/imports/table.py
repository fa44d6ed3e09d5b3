"""The table of layouts that are imported: a new one is a file beside this one and a line here.

Imports nothing heavy, because the command line lists the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from segpipe.errors import DatasetError

if TYPE_CHECKING:
    from segpipe.exchange.imports.labelled import Found
    from segpipe.exchange.imports.source import Source

    Read = Callable[[Source], Found]


@dataclass(frozen=True)
class ImportLayout:
    """What a layout is, in a few words, and the module whose function `read` finds images and masks in it."""

    summary: str
    module: str


IMPORTS = {
    "camvid": ImportLayout("CamVid's folders, as published or SegNet's", "segpipe.exchange.imports.camvid"),
    "cityscapes": ImportLayout("leftImg8bit and gtFine", "segpipe.exchange.imports.cityscapes"),
    "voc": ImportLayout("PASCAL VOC, also CVAT's", "segpipe.exchange.imports.voc"),
    "coco": ImportLayout("COCO as published, Roboflow's, CVAT's", "segpipe.exchange.imports.coco"),
    "colour-masks": ImportLayout(
        "images and PNG masks in the colours of a label map", "segpipe.exchange.imports.colour_masks"
    ),
}


def reader(name: str) -> Read:
    """The function that reads a layout. DatasetError for an unknown name, with those that are known."""
    if name not in IMPORTS:
        raise DatasetError(f"there is no import layout {name!r}: take one of {', '.join(IMPORTS)}")
    read: Read = import_module(IMPORTS[name].module).read
    return read
