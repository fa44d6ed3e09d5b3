"""Ultralytics' segmentation labels."""

from __future__ import annotations

import json
from collections.abc import Iterable

from segpipe.exchange.exports.items import Item, Target
from segpipe.exchange.exports.polygons import polygons
from segpipe.exchange.exports.regions import classes_in


def write(items: Iterable[Item], target: Target) -> None:
    """Ultralytics' segmentation labels: polygons along the pixels' edges."""
    for item in items:
        target.put(f"images/{target.split}/{item.key}{item.extension}", item.image)
        lines = [
            " ".join([str(class_index), *(f"{value:.6f}" for value in polygon.ravel())])
            for class_index in classes_in(item)
            for polygon in polygons(item.mask == class_index)
        ]
        target.put(f"labels/{target.split}/{item.key}.txt", "".join(f"{line}\n" for line in lines))
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(target.classes)
    )
    folders = f"train: images/{target.split}\nval: images/{target.split}\n"
    # Without a path, which would be taken from the working directory, folders are those beside data.yaml.
    target.put("data.yaml", f"{folders}names:\n{names}")
