"""How good a model's masks are on labelled images, and how well each score ranks them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np

from segpipe.concurrency import Budget
from segpipe.confidence.selective import selective_metrics
from segpipe.config import Check
from segpipe.datasets import Dataset, Sample, list_samples, open_dataset, read_sample
from segpipe.errors import DatasetError
from segpipe.evaluation.by_group import GroupEvaluation, evaluate_groups
from segpipe.evaluation.scores import ADVERSARIAL, ROUTING_SCORE, score_images
from segpipe.groups import image_groups
from segpipe.image_range import shown_range
from segpipe.images import MAX_PIXELS
from segpipe.inspection.checks import copies, never_shown, require_unseen, require_usable, say, warnings_of
from segpipe.inspection.facts import look_through
from segpipe.metrics import IouRule, confusion_matrix, image_iou, segmentation_metrics
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.progress import track
from segpipe.training.learnt_images import seen_images

READ_THREADS = 4
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Measurements:
    """A model on labelled images, one by one; n images, K classes.

    image_ious (n,): mean IoU of each mask, NaN for an image without a labelled pixel. confidences (n,): the
    expected IoU that a manifest would show. class_confidences (n,K): the same of each class, NaN for a class
    not in the mask. scores: (n,) per name, higher is surer; `discriminator` is the one that routes. confusion
    (K,K): pixel counts, truth by prediction. groups (n,): what each image belongs to; None: nothing says.
    warnings: what to know of the split and of the figures, a line each.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    image_ious: np.ndarray
    confidences: np.ndarray
    class_confidences: np.ndarray
    scores: dict[str, np.ndarray]
    confusion: np.ndarray
    groups: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Contract C3: quality of the masks at their own sizes (0 to 1), and the ranking of each score.

    scores: adversarial is None for a model whose generator played no game. groups: the same of each group of
    images by itself, empty where nothing says what belongs together.
    """

    n: int
    pixel_accuracy: float
    mean_iou: float
    per_class_iou: dict[str, float | None]
    mean_image_iou: float
    scores: dict[str, dict[str, float] | None]
    groups: dict[str, GroupEvaluation] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def evaluate(
    model_url: str,
    data: str,
    split: str,
    device: str = "auto",
    allow: Collection[Check] = (),
    group_by: str | None = None,
) -> Evaluation:
    """Label a split and compare with its truth. Raises ModelError, DatasetError, StorageError.

    DatasetError also for what inspection.checks refuses and `allow` does not waive. group_by: see
    groups.image_groups.
    """
    labeler = load_without_policy(model_url, device)
    return summarise(measure_checked(labeler, model_url, data, split, allow, group_by))


def measure_checked(
    labeler: Labeler,
    model_url: str,
    data: str,
    split: str,
    allow: Collection[Check],
    group_by: str | None,
) -> Measurements:
    """As `measure_split`, of a split that is looked at first; with groups, and warnings, which are logged.

    Raises DatasetError also for a split that is refused: the model at `model_url` has learnt from it, or its
    images cannot be used.
    """
    facts = look_through(open_matching_dataset(labeler, data), split)
    groups = image_groups(facts.dataset, [sample.key for sample in facts.usable], group_by)
    waived = [
        *require_usable(facts, allow),
        *require_unseen(facts, seen_images(model_url), allow),
    ]
    repeated = [line] if (line := copies(facts)) else []
    known = say([*waived, *repeated, *warnings_of(facts)])
    measured = _measure_samples(labeler, facts.dataset, facts.usable, labeler.iou_rule)
    shown = measured.confusion.sum(axis=0).tolist()
    missed = never_shown(labeler.classes, measured.confusion.sum(axis=1).tolist(), shown, split)
    return replace(
        measured, groups=None if groups is None else tuple(groups), warnings=(*known, *say(missed))
    )


def measure_split(labeler: Labeler, data: str, split: str, rule: IouRule) -> Measurements:
    """The labeler on every image of a split. Raises DatasetError, StorageError."""
    dataset = open_matching_dataset(labeler, data)
    return _measure_samples(labeler, dataset, list_samples(dataset, split), rule)


def _measure_samples(
    labeler: Labeler, dataset: Dataset, samples: list[Sample], rule: IouRule
) -> Measurements:
    batches = read_in_batches(dataset, samples, labeler.batch_size)
    return measure(labeler, [sample.key for sample in samples], batches, dataset.ignore_index, rule)


def measure(
    labeler: Labeler,
    keys: Sequence[str],
    batches: Iterable[list[Pair]],
    ignore_index: int,
    rule: IouRule | None = None,
) -> Measurements:
    """The labeler on images HxWx3 uint8 with their truths HxW uint8, as many as there are keys.

    rule: of the images' IoU; None: the model's own.
    """
    n_classes, rule = len(labeler.classes), rule or labeler.iou_rule
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    ious: list[float] = []
    confidences: list[float] = []
    class_confidences: list[np.ndarray] = []
    scores: dict[str, list[float]] = {}
    with track(len(keys), "evaluate") as progress:
        for pairs in batches:
            images = [image for image, _ in pairs]
            scored = score_images(labeler, images)
            for name, values in scored.scores.items():
                scores.setdefault(name, []).extend(values.tolist())
            for (image, truth), judged in zip(pairs, scored.judged, strict=True):
                labeled = labeler.finish(judged, *image.shape[:2])
                confusion += confusion_matrix(truth, labeled.mask, n_classes, ignore_index)
                ious.append(image_iou(truth, labeled.mask, n_classes, ignore_index, rule))
                confidences.append(labeled.confidence)
                class_confidences.append(labeled.class_confidences)
            progress.advance(len(pairs))
    return Measurements(
        classes=labeler.classes,
        keys=tuple(keys),
        image_ious=np.asarray(ious),
        confidences=np.asarray(confidences),
        class_confidences=np.stack(class_confidences),
        scores={name: np.asarray(values) for name, values in scores.items()},
        confusion=confusion,
    )


def summarise(measurements: Measurements) -> Evaluation:
    """The figures of merit of a split. Raises DatasetError when no image has a labelled pixel."""
    quality = segmentation_metrics(measurements.confusion)
    # An image without one labelled pixel has no IoU and ranks nothing.
    measured = ~np.isnan(measurements.image_ious)
    if not measured.any():
        raise DatasetError("no image has a labelled pixel: every pixel is the ignore index")
    ious = measurements.image_ious[measured]
    return Evaluation(
        n=len(measurements.keys),
        pixel_accuracy=quality.pixel_accuracy,
        mean_iou=quality.mean_iou,
        per_class_iou=dict(zip(measurements.classes, quality.per_class_iou, strict=True)),
        mean_image_iou=float(ious.mean()),
        scores=_rankings(measurements.scores, ious, measured),
        groups=_by_group(measurements),
        warnings=measurements.warnings,
    )


def _rankings(
    scores: dict[str, np.ndarray], ious: np.ndarray, measured: np.ndarray
) -> dict[str, dict[str, float] | None]:
    found: dict[str, dict[str, float] | None] = {
        name: asdict(selective_metrics(1 - ious, values[measured])) for name, values in scores.items()
    }
    found.setdefault(ADVERSARIAL, None)
    return found


def _by_group(found: Measurements) -> dict[str, GroupEvaluation]:
    if found.groups is None:
        return {}
    return evaluate_groups(
        found.groups, found.image_ious, found.confidences, found.scores, routing=ROUTING_SCORE
    )


def open_matching_dataset(labeler: Labeler, data: str) -> Dataset:
    """The data set, whose classes and range must be the model's. Raises DatasetError."""
    dataset = open_dataset(data)
    if dataset.classes != labeler.classes:
        raise DatasetError(
            f"{data} has the classes {', '.join(dataset.classes)} but the model knows "
            f"{', '.join(labeler.classes)}: use the data set the model was made for"
        )
    if dataset.image_range != labeler.image_range:
        raise DatasetError(
            f"{data} has the image range {shown_range(dataset.image_range)} and the model was made with "
            f"{shown_range(labeler.image_range)}: use the data set the model was made for, or train again"
        )
    return dataset


def read_in_batches(dataset: Dataset, samples: list[Sample], batch_size: int) -> Iterator[list[Pair]]:
    """Images and truths of the samples, in order. Raises DatasetError."""
    remaining, read = iter(samples), partial(read_sample, dataset, in_work=Budget(MAX_PIXELS))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while chunk := list(islice(remaining, batch_size)):
            yield list(pool.map(read, chunk))
