"""Whether a foreign network does on labelled images what it should, and if not, what is likely wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from segpipe.errors import ModelError
from segpipe.metrics import SegmentationMetrics, confusion_matrix, segmentation_metrics
from segpipe.models.bundle import ModelSpec
from segpipe.models.generators.foreign import ForeignGenerator, ForeignSpec
from segpipe.models.preprocess import normalise
from segpipe.progress import track
from segpipe.training.fixed_windows import fixed_windows
from segpipe.training.labelled_pixels import LabelledPixels

BATCH = 8
# Images on which other readings of the network are tried.
TRIED = 32
# How much higher the mean IoU of another reading is before it is spoken of.
FAR_BETTER = 0.05
ZEROS, ONES, HALVES = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3
NORMALISATIONS: dict[str, dict[str, Any]] = {
    "ImageNet's mean and deviation": {
        "mean": (0.485, 0.456, 0.406),
        "standard_deviation": (0.229, 0.224, 0.225),
    },
    "values of 0 to 1": {"mean": ZEROS, "standard_deviation": ONES},
    "values of -1 to 1": {"mean": HALVES, "standard_deviation": HALVES},
    "values of 0 to 255": {"mean": ZEROS, "standard_deviation": (1 / 255,) * 3},
}


def require_sense(
    generator: ForeignGenerator, labelled: LabelledPixels, spec: ModelSpec, device: str
) -> SegmentationMetrics:
    """How good its masks are at the networks' scale.

    Raises ModelError when outputs are no numbers, or the mean IoU is below that of one class everywhere; with
    the likely cause.
    """
    confusion = _confusion(generator, labelled, spec, device)
    quality, blank = segmentation_metrics(confusion), segmentation_metrics(_commonest_alone(confusion))
    if quality.mean_iou < blank.mean_iou:
        share = f"mean IoU {quality.mean_iou:.3f} on the split"
        commonest = spec.classes[int(confusion.sum(axis=1).argmax())]
        raise ModelError(
            f"the network makes no sense of the images: {share}, where {commonest!r} everywhere has "
            f"{blank.mean_iou:.3f}; likely cause: {_cause(generator, labelled, spec, device, confusion)}"
        )
    return quality


def _commonest_alone(confusion: np.ndarray) -> np.ndarray:
    truth = confusion.sum(axis=1)
    alone = np.zeros_like(confusion)
    alone[:, truth.argmax()] = truth
    return alone


def doubts(generator: ForeignGenerator, labelled: LabelledPixels, spec: ModelSpec, device: str) -> list[str]:
    """A line when another reading of the network suits some of the images far better."""
    confusion = _confusion(generator, labelled, spec, device, TRIED)
    now = _mean_iou(confusion)
    best, found = _best_reading(generator, labelled, spec, device, confusion)
    if found < now + FAR_BETTER:
        return []
    return [f"mean IoU {now:.3f} on some images of the split would be {found:.3f} if {best}: is it so?"]


def _cause(
    generator: ForeignGenerator, labelled: LabelledPixels, spec: ModelSpec, device: str, confusion: np.ndarray
) -> str:
    """The reading of the network under which its masks are best, in words."""
    best, found = _best_reading(generator, labelled, spec, device, confusion)
    if found < _mean_iou(_commonest_alone(confusion)):
        return "it was trained on other images or for other classes"
    return f"{best} (mean IoU {found:.3f} that way)"


def _best_reading(
    generator: ForeignGenerator, labelled: LabelledPixels, spec: ModelSpec, device: str, confusion: np.ndarray
) -> tuple[str, float]:
    """The other reading, in words, that gives the highest mean IoU on some of the images, and that."""
    found = {
        words: _mean_iou(_confusion(other, labelled, spec, device, TRIED))
        for words, other in _readings(generator, spec, device)
    }
    found["the class map has exchanged classes"] = _best_map(confusion)
    best = max(found, key=lambda words: found[words])
    return best, found[best]


def _mean_iou(confusion: np.ndarray) -> float:
    return segmentation_metrics(confusion).mean_iou


def _best_map(confusion: np.ndarray) -> float:
    """Mean IoU if each class were called what suits it best."""
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    called = np.zeros_like(confusion)
    called[:, rows] = confusion[:, columns]
    return _mean_iou(called)


def _readings(
    generator: ForeignGenerator, spec: ModelSpec, device: str
) -> Iterator[tuple[str, ForeignGenerator]]:
    foreign = generator.spec
    other = "bgr" if foreign.channels == "rgb" else "rgb"
    yield (
        f"its channels are {other}, not {foreign.channels}",
        _reading(generator, spec, device, channels=other),
    )
    for words, values in NORMALISATIONS.items():
        if any(getattr(foreign, name) != value for name, value in values.items()):
            yield f"its normalisation is {words}", _reading(generator, spec, device, **values)


def _reading(generator: ForeignGenerator, spec: ModelSpec, device: str, **changes: Any) -> ForeignGenerator:
    read: ForeignSpec = generator.spec.model_copy(update=changes)
    given = spec.mean, spec.standard_deviation
    return ForeignGenerator(generator.network, read, given, generator.n_classes).to(device).eval()


@torch.inference_mode()
def _confusion(
    generator: nn.Module,
    labelled: LabelledPixels,
    spec: ModelSpec,
    device: str,
    most: int | None = None,
) -> np.ndarray:
    """(K,K) pixel counts of the images, or of the windows of them, that are measured; of the first ones."""
    measured = fixed_windows(labelled, spec, seed=0).first(most)
    total = np.zeros((len(spec.classes),) * 2, dtype=np.int64)
    with track(len(measured), "measure the network", "windows") as bar:
        for images, masks in measured.batches(labelled, BATCH):
            logits = generator(normalise(images.to(device), spec.mean, spec.standard_deviation))
            _require_numbers(logits)
            raised = functional.interpolate(
                logits, size=masks.shape[-2:], mode="bilinear", align_corners=False
            )
            shown = raised.argmax(dim=1).cpu().numpy()
            total += confusion_matrix(masks.numpy(), shown, len(spec.classes), spec.ignore_index)
            bar.advance(len(images))
    return total


def _require_numbers(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise ModelError("the network's outputs for an image of the split are no numbers: it cannot be used")
