"""PASCAL VOC 2012 segmentation."""

from __future__ import annotations

from collections.abc import Iterable

from segpipe.exchange.exports.items import Item, Target


def write(items: Iterable[Item], target: Target) -> None:
    """PASCAL VOC 2012 segmentation; labelmap.txt names the colours, 255 is void."""
    keys = []
    for item in items:
        target.put(f"JPEGImages/{item.key}{item.extension}", item.image)
        target.put(f"SegmentationClass/{item.key}.png", target.encoded(item))
        keys.append(item.key)
    lines = [
        f"{name}:{','.join(map(str, colour))}::"
        for name, colour in zip(target.classes, target.palette.tolist(), strict=True)
    ]
    target.put("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
    target.put(f"ImageSets/Segmentation/{target.split}.txt", "".join(f"{key}\n" for key in keys))
