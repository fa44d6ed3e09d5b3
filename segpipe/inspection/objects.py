"""How large the objects of each class are: connected regions of a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SMALLEST_OBJECT = 20  # pixels; what is smaller is taken for a slip of the brush
PERCENTILE = 5


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
    """Diameters of all objects of a sample of images, by class."""

    def __init__(self) -> None:
        self.images = 0
        self._found: dict[int, list[tuple[np.ndarray, float]]] = {}

    def add(self, diameters: dict[int, np.ndarray], shape: tuple[int, int]) -> None:
        """Those of one more image of the given (height, width)."""
        self.images += 1
        for number, of_class in diameters.items():
            self._found.setdefault(number, []).append((of_class, float(np.sqrt(shape[0] * shape[1]))))

    def count(self, number: int) -> int:
        """Objects of a class."""
        return sum(len(diameters) for diameters, _ in self._found.get(number, []))

    def smallest(self, number: int, working_size: tuple[int, int]) -> tuple[float | None, float | None]:
        """Fifth percentile of a class's diameters: in the images' pixels and in the working size's."""
        if not self.count(number):
            return None, None
        side = float(np.sqrt(working_size[0] * working_size[1]))
        own = np.concatenate([diameters for diameters, _ in self._found[number]])
        seen = np.concatenate([diameters * side / root for diameters, root in self._found[number]])
        return float(np.percentile(own, PERCENTILE)), float(np.percentile(seen, PERCENTILE))
