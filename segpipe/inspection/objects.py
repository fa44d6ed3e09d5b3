"""How large the objects of each class are: connected regions of a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SMALLEST_OBJECT = 20  # pixels; what is smaller is taken for a slip of the brush
SMALL_SHARE = 0.05  # of a class's pixels


def object_diameters(mask: np.ndarray, n_classes: int) -> dict[int, np.ndarray]:
    """Class -> diameters (pixels) of the circles as large as its regions of over 20 pixels, in a mask HxW."""
    found = {}
    # Class by class within its own bounding box, else 255 classes cost 255 passes over the whole mask.
    boxes = ndimage.find_objects(mask.astype(np.int32) + 1, max_label=n_classes)
    for number, box in enumerate(boxes):
        if box is None:
            continue
        regions, _ = ndimage.label(mask[box] == number)
        areas = np.bincount(regions.ravel())[1:]
        found[number] = 2 * np.sqrt(areas[areas > SMALLEST_OBJECT] / np.pi)
    return found


class ObjectSizes:
    """How small the objects of each class are, image by image of a sample."""

    def __init__(self) -> None:
        self.images = 0
        self._found: dict[int, list[tuple[int, float, float]]] = {}

    def add(self, diameters: dict[int, np.ndarray], shape: tuple[int, int]) -> None:
        """Those of one more image of the given (height, width)."""
        self.images += 1
        side = float(np.sqrt(shape[0] * shape[1]))
        for number, of_class in diameters.items():
            if len(of_class):
                self._found.setdefault(number, []).append((len(of_class), _small(of_class), side))

    def count(self, number: int) -> int:
        """Objects of a class."""
        return sum(count for count, _, _ in self._found.get(number, []))

    def smallest(self, number: int, working_size: tuple[int, int]) -> tuple[float | None, float | None]:
        """How wide the small objects of a class are, in the images' pixels and in the working size's.

        In an image those that hold a twentieth of the class's pixels: by count, crumbs of large ones would
        decide. Of the images that show the class, the median.
        """
        if number not in self._found:
            return None, None
        side = float(np.sqrt(working_size[0] * working_size[1]))
        own = [small for _, small, _ in self._found[number]]
        seen = [small * side / whole for _, small, whole in self._found[number]]
        return _median(own), _median(seen)


def _small(diameters: np.ndarray) -> float:
    """The diameter up to which objects hold a twentieth of their pixels."""
    ordered = np.sort(diameters)
    held = np.cumsum(ordered**2)
    return float(ordered[np.searchsorted(held, SMALL_SHARE * held[-1])])


def _median(values: list[float]) -> float:
    """The lower one of an even number."""
    return float(np.percentile(values, 50, method="lower"))
