"""What a reviewer sees in Label Studio: the image, a brush per class, and a way to refuse the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from segpipe.errors import ReviewError
from segpipe.images import class_palette

IMAGE, BRUSH, VERDICT = "image", "mask", "verdict"
REJECT = "reject"
_NOT_IN_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VARIABLE = re.compile(r"\$[\w\[\].{}]")  # the editor puts a task's data in its place


def label_config(classes: Sequence[str]) -> str:
    """The labelling interface as Label Studio's XML, in the colours of the masks.

    Raises ReviewError for a class whose name would come back as another.
    """
    _require_possible(classes)
    view = ElementTree.Element("View")
    ElementTree.SubElement(
        view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true", crossOrigin="anonymous"
    )
    brush = ElementTree.SubElement(view, "BrushLabels", name=BRUSH, toName=IMAGE, opacity="0.5")
    for name, colour in zip(classes, class_palette(len(classes)), strict=True):
        ElementTree.SubElement(brush, "Label", value=name, background="#" + bytes(colour).hex())
    verdict = ElementTree.SubElement(view, "Choices", name=VERDICT, toName=IMAGE, choice="single-radio")
    ElementTree.SubElement(verdict, "Choice", value=REJECT, hint="No mask of this image can be used")
    return ElementTree.tostring(view, encoding="unicode")


def _require_possible(classes: Sequence[str]) -> None:
    for name in classes:
        if not name.strip() or _NOT_IN_XML.search(name) or _VARIABLE.search(name):
            raise ReviewError(
                f"class {name!r} cannot be a label in Label Studio (it is blank, holds a control character "
                "or a $ before a letter): rename it in the data set and train anew"
            )


def require_labels(config: str, classes: Sequence[str], project: str) -> None:
    """Raise ReviewError unless the project's interface can take masks of exactly these classes."""
    try:
        brush = ElementTree.fromstring(config).find(f".//BrushLabels[@name='{BRUSH}'][@toName='{IMAGE}']")  # noqa: S314
    except ElementTree.ParseError as error:
        raise ReviewError(f"project {project!r} has an interface that is no XML: {error}") from error
    labels = set() if brush is None else {label.get("value") for label in brush.iter("Label")}
    if labels != set(classes):
        raise ReviewError(
            f"project {project!r} has other labels than the masks' classes {', '.join(classes)}: "
            "give another --project"
        )
