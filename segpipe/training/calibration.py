"""`segpipe calibrate`: from labelled images the model has not seen to a policy that keeps a promise."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import numpy as np

from segpipe import storage
from segpipe.confidence.policy import Policy, make_policy, to_json
from segpipe.config import CalibrateSettings
from segpipe.datasets import Dataset, fingerprint, list_samples
from segpipe.errors import DatasetError
from segpipe.models.labeler import POLICY_FILE, Labeler, load_without_policy
from segpipe.progress import track
from segpipe.training.evaluation import open_matching_dataset, read_in_batches
from segpipe.training.metrics import image_iou

logger = logging.getLogger(__name__)


def calibrate(settings: CalibrateSettings) -> Policy:
    """Certify a threshold on a labelled split and write policy.json into the model's folder.

    Raises DatasetError (also when the split was trained on: its scores would flatter the model), ModelError,
    StorageError.
    """
    labeler = load_without_policy(settings.model, settings.device)
    dataset = open_matching_dataset(labeler, settings.data)
    calibration_fingerprint = fingerprint(dataset, settings.split)
    _check_unseen(labeler.bundle.card.training_data, calibration_fingerprint, settings)
    scores, ious = _scores_and_ious(labeler, dataset, settings.split)
    # An image without one labelled pixel says nothing about its mask.
    measured = ~np.isnan(ious)
    policy = make_policy(
        scores[measured],
        ious[measured],
        labeler.model_id,
        settings.min_iou,
        settings.max_bad_fraction,
        settings.confidence,
        calibration_fingerprint,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.put(storage.join(storage.normalise(settings.model), POLICY_FILE), to_json(policy).encode())
    return policy


def _check_unseen(training_data: dict[str, str], fingerprint: str, settings: CalibrateSettings) -> None:
    place = f"split {settings.split} of {settings.data}"
    if training_data["fingerprint"] == fingerprint:
        raise DatasetError(f"the model was trained on {place}: calibrate on images it has not seen")
    if training_data.get("validation_fingerprint") == fingerprint:
        logger.warning(
            "%s picked the model's best weights, so the promise may be a little flattered: "
            "prefer images that training has not looked at",
            place,
        )


def _scores_and_ious(labeler: Labeler, dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    samples = list_samples(dataset, split)
    scores, ious = [], []
    with track(len(samples), "calibrate") as progress:
        for pairs in read_in_batches(dataset, samples, labeler.batch_size):
            for (_, truth), labeled in zip(pairs, labeler.label([image for image, _ in pairs]), strict=True):
                scores.append(labeled.discriminator_score)
                ious.append(image_iou(truth, labeled.mask, len(labeler.classes), dataset.ignore_index))
            progress.advance(len(pairs))
    return np.asarray(scores), np.asarray(ious)
