"""The formats: each takes the items one by one and writes last what lists them, so half an export shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from segpipe.exchange.items import IGNORED, Item, Target, png
from segpipe.exchange.polygons import polygons
from segpipe.exchange.runs import column_runs, row_runs
from segpipe.images import decode_image, encode_mask

Write = Callable[[Iterable[Item], Target], None]


def write_indexed_png(items: Iterable[Item], target: Target) -> None:
    """The data set that `segpipe train` takes (contract C1)."""
    for item in items:
        target.put(f"{target.split}/images/{item.key}{item.extension}", item.image)
        target.put(f"{target.split}/masks/{item.key}.png", _indexed(item, target))
    description = {"name": "segpipe", "classes": list(target.classes), "ignore_index": IGNORED}
    target.put("dataset.json", json.dumps(description, indent=1))


def write_voc(items: Iterable[Item], target: Target) -> None:
    """PASCAL VOC 2012 segmentation; labelmap.txt names the colours, 255 is void."""
    keys = []
    for item in items:
        target.put(f"JPEGImages/{item.key}{item.extension}", item.image)
        target.put(f"SegmentationClass/{item.key}.png", _indexed(item, target))
        keys.append(item.key)
    lines = [
        f"{name}:{','.join(map(str, colour))}::"
        for name, colour in zip(target.classes, target.palette.tolist(), strict=True)
    ]
    target.put("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
    target.put(f"ImageSets/Segmentation/{target.split}.txt", "".join(f"{key}\n" for key in keys))


def write_cityscapes(items: Iterable[Item], target: Target) -> None:
    """The folders of Cityscapes; an id is the class's place in labels.json, 255 is ignored."""
    for item in items:
        name = f"{target.split}/segpipe/segpipe_{item.key}"
        image = item.image if item.extension == ".png" else png(decode_image(item.image))
        target.put(f"leftImg8bit/{name}_leftImg8bit.png", image)
        target.put(f"gtFine/{name}_gtFine_labelIds.png", _indexed(item, target))
        target.put(f"gtFine/{name}_gtFine_color.png", png(_colours(item, target)))
    labels = [
        {"name": name, "id": number, "trainId": number, "color": colour}
        for number, (name, colour) in enumerate(zip(target.classes, target.palette.tolist(), strict=True))
    ]
    target.put("labels.json", json.dumps(labels, indent=1))


def write_coco(items: Iterable[Item], target: Target) -> None:
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
    for class_index in _classes_in(item):
        region = item.mask == class_index
        left, top, width, height = _box(region)
        yield {
            "category_id": class_index + 1,
            "iscrowd": 0,
            "area": int(region.sum()),
            "bbox": [left, top, width, height],
            "segmentation": {"size": list(region.shape), "counts": column_runs(region)},
        }


def write_cvat(items: Iterable[Item], target: Target) -> None:
    """CVAT for images 1.1: per image and class one mask, runs of rows within its box."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "job"), "labels"
    )
    for name, colour in zip(target.classes, target.palette.tolist(), strict=True):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*colour)
        ElementTree.SubElement(label, "type").text = "mask"
    for number, item in enumerate(items):
        name, (height, width) = f"{item.key}{item.extension}", item.mask.shape
        target.put(f"images/{name}", item.image)
        about = {"id": str(number), "name": name, "width": str(width), "height": str(height)}
        _add_cvat_masks(ElementTree.SubElement(root, "image", about), item, target)
    target.put("annotations.xml", ElementTree.tostring(root, "utf-8", xml_declaration=True))


def _add_cvat_masks(image: ElementTree.Element, item: Item, target: Target) -> None:
    for class_index in _classes_in(item):
        region = item.mask == class_index
        left, top, width, height = _box(region)
        runs = row_runs(region[top : top + height, left : left + width])
        ElementTree.SubElement(
            image,
            "mask",
            {
                "label": target.classes[class_index],
                "source": "manual",
                "occluded": "0",
                "rle": ", ".join(map(str, runs)),
                "left": str(left),
                "top": str(top),
                "width": str(width),
                "height": str(height),
                "z_order": "0",
            },
        )


def write_yolo_seg(items: Iterable[Item], target: Target) -> None:
    """Ultralytics' segmentation labels: polygons, whose edges are within a quarter of a pixel."""
    for item in items:
        target.put(f"images/{target.split}/{item.key}{item.extension}", item.image)
        lines = [
            " ".join([str(class_index), *(f"{value:.6f}" for value in polygon.ravel())])
            for class_index in _classes_in(item)
            for polygon in polygons(item.mask == class_index)
        ]
        target.put(f"labels/{target.split}/{item.key}.txt", "".join(f"{line}\n" for line in lines))
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(target.classes)
    )
    folders = f"train: images/{target.split}\nval: images/{target.split}\n"
    target.put("data.yaml", f"path: .\n{folders}names:\n{names}")


def _indexed(item: Item, target: Target) -> bytes:
    return encode_mask(item.mask, target.palette)


def _colours(item: Item, target: Target) -> np.ndarray:
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(target.palette)] = target.palette
    return colours[item.mask]


def _classes_in(item: Item) -> list[int]:
    return [int(value) for value in np.unique(item.mask) if value != IGNORED]


def _box(region: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width, height of what is true."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1
