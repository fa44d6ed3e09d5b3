"""The table of layouts that are imported: a new one is a file beside this one and a line here.

Imports nothing heavy, because the command line lists the names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from segpipe.kinds import Kind, module_of

if TYPE_CHECKING:
    from segpipe.exchange.imports.labelled import Found
    from segpipe.exchange.imports.source import Source

    # Finds images, and how to get their masks.
    Read = Callable[[Source], Found]

# Each module has read, a Read.
IMPORTS = {
    "camvid": Kind("as published or by SegNet", "segpipe.exchange.imports.camvid"),
    "cityscapes": Kind("with labelIds or labelTrainIds", "segpipe.exchange.imports.cityscapes"),
    "voc": Kind("as PASCAL VOC or by CVAT", "segpipe.exchange.imports.voc"),
    "coco": Kind("as published or by Roboflow or CVAT", "segpipe.exchange.imports.coco"),
    "colour-masks": Kind("with a label map", "segpipe.exchange.imports.colour_masks"),
}


def reader(name: str) -> Read:
    """The function that reads a layout. RunError for an unknown name, with those that are known."""
    read: Read = module_of(IMPORTS, name, "import layout").read
    return read
