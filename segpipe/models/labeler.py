"""A trained model ready to label images (contract C9)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segpipe import storage
from segpipe.confidence.policy import Policy, check_policy_for_model, display_confidence, from_json
from segpipe.errors import ImageError, NotFoundError, PolicyError
from segpipe.models.bundle import Bundle, load_bundle
from segpipe.models.device import choose_device
from segpipe.models.inference import Prediction, full_size_mask, predict, prepare

logger = logging.getLogger(__name__)
BATCH_IMAGES = 8
POLICY_FILE = "policy.json"


@dataclass(frozen=True)
class Labeled:
    """A mask and how far to trust it.

    mask: HxW uint8 class indices at the image's own size. confidence: expected mask IoU, 0 to 1.
    discriminator_score: raw, unbounded; what a policy's threshold is compared with. class_fractions: (K,)
    shares of the mask that sum to 1. class_confidences: (K,) expected IoU of each class, 0 to 1, NaN for a
    class not in the mask. confidence_map: (h,w) float32 on the networks' own grid, 0 to 1, the probability
    that the label there is right.
    """

    mask: np.ndarray
    confidence: float
    discriminator_score: float
    class_fractions: np.ndarray
    class_confidences: np.ndarray
    confidence_map: np.ndarray


@dataclass(frozen=True)
class Labeler:
    """A model bundle on a device, with the policy that was certified for it, if any."""

    bundle: Bundle
    policy: Policy | None
    device: str
    batch_size: int = BATCH_IMAGES

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the mask's indices."""
        return self.bundle.spec.classes

    @property
    def model_id(self) -> str:
        """12 hex digits that name these weights."""
        return self.bundle.model_id

    def label(self, images: Sequence[np.ndarray]) -> list[Labeled]:
        """Masks and scores of images HxWx3 uint8, each of any size, in the same order.

        Raises ImageError for an array of another shape or type.
        """
        _check_images(images)
        labeled: list[Labeled] = []
        for first in range(0, len(images), self.batch_size):
            labeled.extend(self._label_batch(images[first : first + self.batch_size]))
        return labeled

    def _label_batch(self, images: Sequence[np.ndarray]) -> list[Labeled]:
        prediction = predict(self.bundle, prepare(self.bundle, images, self.device), self.device)
        return self.finish(images, prediction)

    def finish(self, images: Sequence[np.ndarray], prediction: Prediction) -> list[Labeled]:
        """From the networks' outputs for these images to masks at their own sizes, and scores."""
        verdict = prediction.verdict
        return [
            self._labeled(full_size_mask(logits, image.shape[:2]), *judged)
            for image, logits, *judged in zip(
                images,
                prediction.logits,
                verdict.score.tolist(),
                verdict.class_confidences.cpu().numpy(),
                verdict.correctness[:, 0].cpu().numpy(),
                strict=True,
            )
        ]

    def _labeled(
        self, mask: np.ndarray, score: float, by_class: np.ndarray, confidence_map: np.ndarray
    ) -> Labeled:
        fractions = np.bincount(mask.ravel(), minlength=len(self.classes)) / mask.size
        # A class of a few pixels can show at full size only; it has no grid pixel of its own to be judged on.
        known = np.where(np.isnan(by_class), np.nanmean(by_class), by_class)
        return Labeled(
            mask=mask,
            confidence=self._confidence(score),
            discriminator_score=score,
            class_fractions=fractions,
            class_confidences=np.where(fractions > 0, known, np.nan),
            confidence_map=confidence_map,
        )

    def _confidence(self, score: float) -> float:
        if self.policy is not None:
            return display_confidence(self.policy, score)
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, score))))


def _check_images(images: Sequence[np.ndarray]) -> None:
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(
                "unsupported",
                f"image {number} is {image.dtype} of shape {image.shape}: give HxWx3 uint8 (RGB)",
            )


def load_model(url: str, device: str = "auto") -> Labeler:
    """A bundle at any fsspec URL with its policy; device is auto, cpu or cuda.

    Raises ModelError (missing, damaged, no such device), PolicyError (policy.json damaged), StorageError.
    """
    labeler = load_without_policy(url, device)
    return replace(labeler, policy=load_policy(url, labeler.model_id))


def load_without_policy(url: str, device: str) -> Labeler:
    """A bundle whose policy is to be measured or made, not used. Raises ModelError, StorageError."""
    chosen = choose_device(device)
    return Labeler(load_bundle(url, chosen), None, chosen)


def load_policy(url: str, model_id: str) -> Policy | None:
    """The policy in a bundle's folder; None when there is none or it is another model's (contract C8).

    Raises PolicyError when the file is damaged.
    """
    uri = storage.join(storage.normalise(url), POLICY_FILE)
    try:
        content = storage.read_bytes(uri)
    except NotFoundError:
        return None
    try:
        policy = from_json(content.decode("utf-8", errors="replace"))
    except PolicyError as error:
        raise PolicyError(f"{uri}: {error}") from error
    try:
        check_policy_for_model(policy, model_id)
    except PolicyError as error:
        logger.warning("%s; until then nothing is accepted", error)
        return None
    return policy
