"""How much of a draft a person has left as it was."""

from __future__ import annotations

import numpy as np


def draft_iou(draft: np.ndarray, final: np.ndarray, n_classes: int) -> float:
    """Mean IoU, 0 to 1, of two masks HxW uint8 over the classes in either.

    Where the final mask has none of the n_classes (255: it was erased), the draft is wrong: whoever erases
    what is wrong says no less against it than whoever repaints it.
    """
    pairs = np.bincount((draft.ravel() * np.uint16(256)) + final.ravel(), minlength=256**2)
    counts = pairs.reshape(256, 256)
    shared = counts.diagonal()[:n_classes]
    either = counts.sum(axis=1)[:n_classes] + counts.sum(axis=0)[:n_classes] - shared
    return float(np.mean(shared[either > 0] / either[either > 0]))
