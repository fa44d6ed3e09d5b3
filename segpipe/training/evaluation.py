"""How good a model's masks are on labelled images, and how well each score ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import numpy as np

from segpipe.confidence import baselines
from segpipe.confidence.score import discriminator_score
from segpipe.confidence.selective import selective_metrics
from segpipe.datasets import Dataset, Sample, list_samples, open_dataset, read_sample
from segpipe.errors import DatasetError
from segpipe.models.inference import Prediction, full_size_mask, predict, prepare
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.progress import track
from segpipe.training.metrics import confusion_matrix, image_iou, segmentation_metrics

READ_THREADS = 4

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Contract C3: quality of the masks at their own sizes (0 to 1), and the ranking of each score."""

    n: int
    pixel_accuracy: float
    mean_iou: float
    per_class_iou: dict[str, float | None]
    mean_image_iou: float
    scores: dict[str, dict[str, float]]


def evaluate(model_url: str, data: str, split: str, device: str = "auto") -> Evaluation:
    """Label a split and compare with its truth. Raises ModelError, DatasetError, StorageError."""
    labeler = load_without_policy(model_url, device)
    dataset = open_matching_dataset(labeler, data)
    samples = list_samples(dataset, split)
    n_classes = len(labeler.classes)
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    ious: list[float] = []
    scores: dict[str, list[float]] = {}
    with track(len(samples), "evaluate") as progress:
        for pairs in read_in_batches(dataset, samples, labeler.batch_size):
            batch = prepare(labeler.bundle, [image for image, _ in pairs], labeler.device)
            prediction = predict(labeler.bundle, batch, labeler.device)
            mirrored = predict(labeler.bundle, batch.flip(-1), labeler.device)
            for name, values in _all_scores(prediction, mirrored).items():
                scores.setdefault(name, []).extend(values)
            for (_, truth), logits in zip(pairs, prediction.logits, strict=True):
                mask = full_size_mask(logits, truth.shape)
                confusion += confusion_matrix(truth, mask, n_classes, dataset.ignore_index)
                ious.append(image_iou(truth, mask, n_classes, dataset.ignore_index))
            progress.advance(len(pairs))
    return _summary(labeler.classes, confusion, np.asarray(ious), scores)


def _all_scores(prediction: Prediction, mirrored: Prediction) -> dict[str, list[float]]:
    probabilities = prediction.logits.softmax(dim=1)
    adversarial = discriminator_score(prediction.verdict).tolist()
    return {
        "discriminator": adversarial,
        "adversarial": adversarial,
        "max_softmax": baselines.max_softmax(probabilities).tolist(),
        "entropy": baselines.entropy(probabilities).tolist(),
        "soft_dice": baselines.soft_dice(probabilities).tolist(),
        "flip_tta": baselines.flip_tta(probabilities, mirrored.logits.softmax(dim=1)).tolist(),
    }


def _summary(
    classes: tuple[str, ...], confusion: np.ndarray, ious: np.ndarray, scores: dict[str, list[float]]
) -> Evaluation:
    quality = segmentation_metrics(confusion)
    # An image without one labelled pixel has no IoU and ranks nothing.
    measured = ~np.isnan(ious)
    losses = 1 - ious[measured]
    return Evaluation(
        n=len(ious),
        pixel_accuracy=quality.pixel_accuracy,
        mean_iou=quality.mean_iou,
        per_class_iou=dict(zip(classes, quality.per_class_iou, strict=True)),
        mean_image_iou=float(ious[measured].mean()),
        scores={
            name: asdict(selective_metrics(losses, np.asarray(values)[measured]))
            for name, values in scores.items()
        },
    )


def open_matching_dataset(labeler: Labeler, data: str) -> Dataset:
    """The data set, whose classes must be the model's. Raises DatasetError."""
    dataset = open_dataset(data)
    if dataset.classes != labeler.classes:
        raise DatasetError(
            f"{data} has the classes {', '.join(dataset.classes)} but the model knows "
            f"{', '.join(labeler.classes)}: use the data set the model was made for"
        )
    return dataset


def read_in_batches(dataset: Dataset, samples: list[Sample], batch_size: int) -> Iterator[list[Pair]]:
    """Images and truths of the samples, in order. Raises DatasetError."""
    remaining = iter(samples)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while chunk := list(islice(remaining, batch_size)):
            yield list(pool.map(partial(read_sample, dataset), chunk))
