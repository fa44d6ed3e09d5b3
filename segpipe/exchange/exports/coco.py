"""COCO, with run-length masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from segpipe.exchange.exports.items import Item, Target
from segpipe.exchange.exports.regions import box_of, classes_in
from segpipe.exchange.exports.runs import column_runs


def write(items: Iterable[Item], target: Target) -> None:
    """COCO: per image and class one annotation, a run-length mask, which keeps holes and single pixels."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        name, (height, width) = f"{item.key}{item.extension}", item.mask.shape
        target.put(f"{target.split}/{name}", item.image)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + count, "image_id": number} | annotation
            for count, annotation in enumerate(_coco_annotations(item), start=1)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(target.classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    target.put(f"annotations/{target.split}.json", json.dumps(content))


def _coco_annotations(item: Item) -> Iterator[dict[str, Any]]:
    for class_index in classes_in(item):
        region = item.mask == class_index
        left, top, width, height = box_of(region)
        yield {
            "category_id": class_index + 1,
            "iscrowd": 0,
            "area": int(region.sum()),
            "bbox": [left, top, width, height],
            "segmentation": {"size": list(region.shape), "counts": column_runs(region)},
        }
