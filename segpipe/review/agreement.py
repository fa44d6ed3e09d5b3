"""How much of a draft a person has left as it was."""

from __future__ import annotations

import numpy as np

from segpipe.metrics import IouRule, mean_class_iou


def draft_iou(draft: np.ndarray, final: np.ndarray, n_classes: int, rule: IouRule) -> float:
    """Mean IoU, 0 to 1, of two masks HxW uint8 over the classes in either, the final one being the truth.

    Where the final mask has none of the n_classes (255: it was erased), the draft is wrong: whoever erases
    what is wrong says no less against it than whoever repaints it.
    """
    pairs = np.bincount((draft.ravel() * np.uint16(256)) + final.ravel(), minlength=256**2)
    counts = pairs.reshape(256, 256)
    shared, shown, true = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return mean_class_iou(shared[:n_classes], true[:n_classes], shown[:n_classes], draft.size, rule)
