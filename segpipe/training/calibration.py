"""`segpipe calibrate`: from labelled images the model has not seen to a policy that keeps a promise."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from segpipe import storage
from segpipe.confidence.policy import Policy, make_policy, to_json
from segpipe.config import CalibrateSettings
from segpipe.datasets import fingerprint, list_samples
from segpipe.errors import DatasetError
from segpipe.models.bundle import read_card
from segpipe.models.labeler import POLICY_FILE, Labeler, load_model
from segpipe.progress import track
from segpipe.training.evaluation import open_matching_dataset, read_in_batches
from segpipe.training.metrics import image_iou


def calibrate(settings: CalibrateSettings) -> Policy:
    """Certify a threshold on a labelled split and write policy.json into the model's folder.

    Raises DatasetError (also when the split was trained on: its scores would flatter the model), ModelError,
    StorageError.
    """
    labeler = load_model(settings.model, settings.device)
    dataset = open_matching_dataset(labeler, settings.data)
    calibration_fingerprint = fingerprint(dataset, settings.split)
    if read_card(settings.model).training_data["fingerprint"] == calibration_fingerprint:
        raise DatasetError(
            f"the model was trained on split {settings.split} of {settings.data}: "
            "calibrate on images it has not seen"
        )
    scores, ious = _scores_and_ious(labeler, settings)
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


def _scores_and_ious(labeler: Labeler, settings: CalibrateSettings) -> tuple[np.ndarray, np.ndarray]:
    dataset = open_matching_dataset(labeler, settings.data)
    samples = list_samples(dataset, settings.split)
    scores, ious = [], []
    with track(len(samples), "calibrate") as progress:
        for pairs in read_in_batches(dataset, samples, labeler.batch_size):
            for (_, truth), labeled in zip(pairs, labeler.label([image for image, _ in pairs]), strict=True):
                scores.append(labeled.discriminator_score)
                ious.append(image_iou(truth, labeled.mask, len(labeler.classes), dataset.ignore_index))
            progress.advance(len(pairs))
    return np.asarray(scores), np.asarray(ious)
