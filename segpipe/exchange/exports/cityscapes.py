"""The folders of Cityscapes."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from segpipe.exchange.exports.items import Item, Target
from segpipe.images import decode_image, encode_image


def write(items: Iterable[Item], target: Target) -> None:
    """The folders of Cityscapes; an id is the class's place in labels.json, 255 is ignored."""
    for item in items:
        name = f"{target.split}/segpipe/segpipe_{item.key}"
        target.put(f"leftImg8bit/{name}_leftImg8bit.png", _as_png(item))
        target.put(f"gtFine/{name}_gtFine_labelIds.png", target.encoded(item))
        target.put(f"gtFine/{name}_gtFine_color.png", encode_image(_colours(item, target)))
    labels = [
        {"name": name, "id": number, "trainId": number, "color": colour}
        for number, (name, colour) in enumerate(zip(target.classes, target.palette.tolist(), strict=True))
    ]
    target.put("labels.json", json.dumps(labels, indent=1))


def _as_png(item: Item) -> bytes:
    return item.image if item.extension == ".png" else encode_image(decode_image(item.image, item.mask.size))


def _colours(item: Item, target: Target) -> np.ndarray:
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(target.palette)] = target.palette
    return colours[item.mask]
