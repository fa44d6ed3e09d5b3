"""CVAT for images 1.1."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from segpipe.exchange.exports.items import Item, Target
from segpipe.exchange.exports.regions import box_of, classes_in
from segpipe.exchange.exports.runs import row_runs
from segpipe.images import hex_colour


def write(items: Iterable[Item], target: Target) -> None:
    """CVAT for images 1.1: per image and class one mask, runs of rows within its box."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "job"), "labels"
    )
    # Without a class there is nothing to export, which the items say.
    for name, colour in zip(target.classes, target.palette.tolist(), strict=False):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = hex_colour(colour)
        ElementTree.SubElement(label, "type").text = "mask"
    for number, item in enumerate(items):
        name, (height, width) = f"{item.key}{item.extension}", item.mask.shape
        target.put(f"images/{name}", item.image)
        about = {"id": str(number), "name": name, "width": str(width), "height": str(height)}
        _add_cvat_masks(ElementTree.SubElement(root, "image", about), item, target)
    target.put("annotations.xml", ElementTree.tostring(root, "utf-8", xml_declaration=True))


def _add_cvat_masks(image: ElementTree.Element, item: Item, target: Target) -> None:
    for class_index in classes_in(item):
        region = item.mask == class_index
        left, top, width, height = box_of(region)
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
