"""What a layout is read as: classes, and images with a way to get their masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from segpipe.printable import printable


@dataclass(frozen=True)
class SourceImage:
    """An image and how to get its mask, HxW uint8 of C1's class indices.

    size (height, width) is what the annotations say of the image, None where they say nothing; described_in
    names the file that does.
    """

    split: str
    key: str
    uri: str
    mask: Callable[[], np.ndarray]
    described_in: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LeftOut:
    """What is not imported: a file, or an image of it, or one annotation; empty where it is all of it."""

    file: str
    image: str
    annotation: str
    reason: str

    def __str__(self) -> str:
        parts = (self.file, self.image and f"image {self.image}", self.annotation)
        return printable(f"{', '.join(part for part in parts if part)}: {self.reason}")


@dataclass(frozen=True)
class Found:
    """A layout's content. left_out: what is known to be unusable before a pixel is read."""

    classes: tuple[str, ...]
    images: list[SourceImage]
    left_out: list[LeftOut] = field(default_factory=list)
    may_lack_images: bool = False  # an image that cannot be used is left out, instead of refusing all
