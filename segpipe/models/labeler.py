"""A trained model ready to label images (contract C9)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segpipe import storage
from segpipe.concurrency import own_cores
from segpipe.confidence.policy import (
    Policy,
    check_policy_for_model,
    check_policy_for_precision,
    display_confidence,
    from_json,
)
from segpipe.errors import DeviceMemoryError, NotFoundError, PolicyError
from segpipe.image_range import ImageRange
from segpipe.metrics import IouRule
from segpipe.models.allocator import keep_freed_memory
from segpipe.models.bundle import Bundle, load_bundle
from segpipe.models.device import (
    choose_device,
    free_memory,
    has_bfloat16,
    images_at_once,
    kind_of,
    on_device,
    own_stream,
    precision_of,
    stack_to_device,
    wait_for,
)
from segpipe.models.full_size import full_size_mask
from segpipe.models.given_images import given_pixels
from segpipe.models.half_weights import hold_in_bfloat16
from segpipe.models.inference import FinishedMask, Prediction, fetched, finished, normalised, predict
from segpipe.models.preprocess import resize_image
from segpipe.models.promotion_line import resolve
from segpipe.models.tiled import PIXELS_AT_ONCE, ScaledImage, judge_scaled, prepare_scaled, tiling_of
from segpipe.tiles import Tiling, cost_of

logger = logging.getLogger(__name__)
BATCH_IMAGES = 8
# A JPEG that is decoded at a fraction of its size stays so many times above the working size.
DECODE_MARGIN = 2
# No image is so large: those that are labelled at their own scale are decoded in full.
WHOLE = 1_000_000
# Pixels of all images that are labelled at their own scale in one go, unless a single one has more.
SCALED_PIXELS_AT_ONCE = 8_000_000
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
class JudgedMask:
    """What the networks say about one image, on their own grid.

    On their device: logits (K,h,w) float32; labels (h,w) uint8, their argmax. In main memory, as in Verdict:
    score (); class_confidences (K,); correctness (h,w).
    """

    logits: Tensor
    labels: Tensor
    score: Tensor
    class_confidences: Tensor
    correctness: Tensor


@dataclass(frozen=True)
class Passes:
    """How the networks see images: scale as in ModelSpec; tiles of an image, and pixels against those of one
    fitted to the working size, on average. None: there is no scale, or no image to tell by."""

    scale: float | None
    tiles_per_image: float | None
    cost: float | None


Prepared = np.ndarray | ScaledImage


@dataclass(frozen=True)
class Labeler:
    """A model bundle on a device, with the policy that was certified for it, if any.

    gathered_images: how many a GPU takes at once, from all threads together; None: each thread of a CPU
    computes a batch of its own.
    """

    bundle: Bundle
    policy: Policy | None
    device: str
    batch_size: int = BATCH_IMAGES
    gathered_images: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the mask's indices."""
        return self.bundle.spec.classes

    @property
    def model_id(self) -> str:
        """12 hex digits that name these weights."""
        return self.bundle.model_id

    @property
    def digest(self) -> str | None:
        """The 64 hex digits that model_id begins; None only of a bundle that was not loaded."""
        return self.bundle.digest

    @property
    def image_range(self) -> ImageRange | None:
        """The values of images, as stored, that become 0 and 255; None: the full range of each file."""
        return self.bundle.spec.image_range

    @property
    def iou_rule(self) -> IouRule:
        """What an image's IoU is to the model, whose confidence is the IoU expected."""
        return self.bundle.spec.rule

    @property
    def smallest_decode(self) -> tuple[int, int]:
        """Height and width below which no image may be scaled as it is decoded."""
        if self.bundle.spec.scale is not None:
            return WHOLE, WHOLE
        height, width = self.bundle.spec.working_size
        return DECODE_MARGIN * height, DECODE_MARGIN * width

    @property
    def pixels_at_once(self) -> int | None:
        """How many pixels images may have in all that are in memory together; None: they are shrunk first."""
        return None if self.bundle.spec.scale is None else SCALED_PIXELS_AT_ONCE

    @property
    def computed_at_once(self) -> int:
        """How many batches are on the cores at once: one per core, and as many that wait for a GPU."""
        return torch.get_num_threads() if self.device == "cpu" else 2 * own_cores()

    @property
    def judged_at_once(self) -> int:
        """How many batches are on the device at once: one per core of a CPU; on a GPU one is computed while
        another is brought or its masks are fetched.
        """
        return self.computed_at_once if self.device == "cpu" else 2

    @property
    def tiling(self) -> Tiling | None:
        """How the networks see images; None where each is fitted to the working size."""
        return tiling_of(self.bundle)

    def passes(self, shapes: Sequence[tuple[int, int]]) -> Passes:
        """Of images of these (height, width)."""
        tiling = self.tiling
        if tiling is None or not shapes:
            return Passes(None if tiling is None else tiling.scale, None, None)
        cuts = [tiling.of_image(shape) for shape in shapes]
        tiles = sum(len(one.tiles) for one in cuts) / len(cuts)
        return Passes(tiling.scale, tiles, cost_of(cuts, self.bundle.spec.working_size))

    @contextmanager
    def device_threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that feed a GPU, judged_at_once of them, each with a stream of its own. DeviceError."""
        on_device(self.device, "the model", lambda: wait_for(self.device))  # whose weights came by another
        with ThreadPoolExecutor(self.judged_at_once, initializer=own_stream, initargs=(self.device,)) as pool:
            yield pool

    @contextmanager
    def compute_threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads to label in: each computes its batch on one core and waits for no other."""
        if self.device == "cpu":
            keep_freed_memory()
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.computed_at_once, initializer=torch.set_num_threads, initargs=(1,))
        try:
            with pool:
                yield pool
        finally:
            torch.set_num_threads(threads)

    def label(self, images: Iterable[np.ndarray | Image.Image]) -> list[Labeled]:
        """Masks and scores of images, HxWx3 uint8 or of Pillow, each of any size, in the same order.

        Where the model has a range of values uint16, HxWx3 or HxW, too, and all are brought to it. A batch is
        taken from the images at a time. Raises ImageError for what is no image or no iterable of images,
        DeviceMemoryError when a batch does not fit, DeviceError.
        """
        return self.label_pixels(given_pixels(images, self.image_range))

    def label_pixels(self, images: Iterable[np.ndarray]) -> list[Labeled]:
        """As `label`, of HxWx3 uint8 as images.py decodes them, which are in the model's range already."""
        labeled: list[Labeled] = []
        pixels = iter(images)
        while batch := list(islice(pixels, self.batch_size)):
            prepared, sizes = [self.prepare(image) for image in batch], [image.shape[:2] for image in batch]
            judged = self.judge(prepared) if self.device == "cpu" else self._judge_in_halves(prepared, sizes)
            labeled += [
                self.finish(mask, *image.shape[:2]) for mask, image in zip(judged, batch, strict=True)
            ]
        return labeled

    def _judge_in_halves(
        self, prepared: Sequence[Prepared], sizes: Sequence[tuple[int, int]]
    ) -> list[JudgedMask | FinishedMask]:
        try:
            return list(self.judge_at_size(prepared, sizes))
        except DeviceMemoryError:
            if len(prepared) == 1:
                raise
        half = len(prepared) // 2
        first = self._judge_in_halves(prepared[:half], sizes[:half])
        return first + self._judge_in_halves(prepared[half:], sizes[half:])

    def prepare(self, image: np.ndarray) -> Prepared:
        """An image HxWx3 uint8 at the networks' working size (h,w,3), or at its scale."""
        if self.bundle.spec.scale is not None:
            return prepare_scaled(self.bundle, image)
        return resize_image(image, self.bundle.spec.working_size)

    def judge(self, prepared: Sequence[Prepared]) -> Sequence[JudgedMask | FinishedMask]:
        """One pass of both networks over prepared images, or over all of their tiles.

        Raises DeviceMemoryError when they do not fit in the device's memory, DeviceError when it has failed.
        """
        if self.bundle.spec.scale is not None:
            return self._judge_scaled(prepared)
        return on_device(
            self.device, f"{len(prepared)} images at once", lambda: split_masks(self._predict(prepared))
        )

    def judge_at_size(
        self, prepared: Sequence[Prepared], sizes: Sequence[tuple[int, int]]
    ) -> Sequence[JudgedMask | FinishedMask]:
        """As `judge`, with the masks made on the device at the images' own sizes (height, width): one copy
        brings the images there and one all that is said of them back."""
        if self.bundle.spec.scale is not None:
            return self._judge_scaled(prepared)
        what = f"{len(prepared)} images at once"
        try:
            return on_device(self.device, what, lambda: finished(self._predict(prepared), sizes))
        except DeviceMemoryError:
            if len(prepared) > 1:
                raise
        return self.judge(prepared)  # its mask is too large for the device

    def _judge_scaled(self, prepared: Sequence[Prepared]) -> list[FinishedMask]:
        images, pixels = cast(Sequence[ScaledImage], prepared), PIXELS_AT_ONCE
        if self.gathered_images is not None:
            pixels = self.gathered_images * math.prod(self.bundle.spec.working_size)
        return judge_scaled(self.bundle, images, self.device, pixels)

    def _predict(self, prepared: Sequence[Prepared]) -> Prediction:
        batch = stack_to_device(cast(Sequence[np.ndarray], prepared), self.device)
        return predict(self.bundle, normalised(self.bundle, batch), self.device)

    def finish(self, judged: JudgedMask | FinishedMask, height: int, width: int) -> Labeled:
        """The mask at the image's own size, and the numbers on it. Raises DeviceError."""
        if isinstance(judged, FinishedMask):
            mask, correctness = judged.mask, judged.correctness
            if self.device != "cpu":  # else who keeps one would keep the pinned memory of its whole batch
                mask, correctness = mask.copy(), correctness.copy()
            by_class = judged.class_confidences.numpy()
            return self._labeled(mask, float(judged.score), by_class, correctness)
        return self._labeled(
            self._full_size(judged, (height, width)),
            float(judged.score),
            judged.class_confidences.numpy(),
            judged.correctness.numpy(),
        )

    def _full_size(self, judged: JudgedMask, size: tuple[int, int]) -> np.ndarray:
        raised = partial(full_size_mask, judged.logits, judged.labels, size)
        try:
            return on_device(self.device, f"a mask of {size[0]}x{size[1]}", raised)
        except DeviceMemoryError as error:
            logger.info("%s: it is made on the CPU", error)
        return on_device(
            self.device, "a copy", lambda: full_size_mask(judged.logits.cpu(), judged.labels.cpu(), size)
        )

    def _labeled(
        self, mask: np.ndarray, score: float, by_class: np.ndarray, confidence_map: np.ndarray
    ) -> Labeled:
        fractions = _class_fractions(mask, len(self.classes))
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
        if math.isnan(score):
            return 0.0  # a mask that could not be judged earns no confidence
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, score))))


def _class_fractions(mask: np.ndarray, n_classes: int) -> np.ndarray:
    """(K,) shares of a mask HxW; counted by runs of equal pixels, of which there are few."""
    pixels = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    lengths = np.diff(starts, append=pixels.size)
    return np.bincount(pixels[starts], weights=lengths, minlength=n_classes) / pixels.size


def split_masks(prediction: Prediction) -> list[JudgedMask]:
    """One by one what was predicted for a batch, which a GPU is waited for."""
    verdict = fetched(prediction.verdict)
    return [
        JudgedMask(*parts)
        for parts in zip(
            prediction.logits,
            prediction.labels,
            verdict.score,
            verdict.class_confidences,
            verdict.correctness[:, 0],
            strict=True,
        )
    ]


def load_model(url: str, device: str = "auto") -> Labeler:
    """A bundle at any fsspec URL, or the newest of a line of them, with its policy; device: auto, cpu, cuda,
    cuda:N.

    A policy whose scores were computed in another precision than the device's is left out, with a warning.
    Raises ModelError (missing, damaged, no such device), PolicyError (policy.json damaged), StorageError.
    """
    url = resolve(url)
    labeler = load_without_policy(url, device)
    policy = load_policy(url, labeler.model_id, labeler.digest)
    return replace(labeler, policy=None if policy is None else policy_on(policy, labeler.device))


def load_without_policy(url: str, device: str) -> Labeler:
    """A bundle whose policy is to be measured or made, not used. Raises ModelError, StorageError."""
    chosen = choose_device(device)
    bundle = on_device(chosen, "the model", lambda: load_bundle(url, chosen))
    if kind_of(chosen) == "cuda" and has_bfloat16(chosen):
        hold_in_bfloat16(bundle)
    return Labeler(bundle, None, chosen, gathered_images=_gathered(bundle, chosen))


def _gathered(bundle: Bundle, device: str) -> int | None:
    if kind_of(device) == "cpu":
        return None
    pixels, n_classes = math.prod(bundle.spec.working_size), len(bundle.spec.classes)
    return on_device(device, "the model", lambda: images_at_once(free_memory(device), pixels, n_classes))


def policy_on(policy: Policy, device: str) -> Policy | None:
    """The policy as it holds for scores of this device; None, with a warning, where they are others."""
    try:
        check_policy_for_precision(policy, precision_of(device))
    except PolicyError as error:
        logger.warning("%s; until then nothing is accepted", error)
        return None
    if policy.device not in (None, kind_of(device)):
        logger.warning(
            "policy %s was calibrated on a %s device, and this is a %s: in the same precision scores differ "
            "little, so it holds; run segpipe calibrate here to be sure",
            policy.policy_id,
            policy.device,
            kind_of(device),
        )
    return policy


def load_policy(url: str, model_id: str, digest: str | None) -> Policy | None:
    """The policy in a bundle's folder; None when there is none or it is another model's (contract C8).

    A policy that names its model by 12 digits only holds, with a warning, until the next calibration.

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
        check_policy_for_model(policy, model_id, digest)
    except PolicyError as error:
        logger.warning("%s; until then nothing is accepted", error)
        return None
    if policy.model_digest is None:
        logger.warning(
            "policy %s names its model by 12 digits only, which another model could be made to share: it "
            "holds for now, run segpipe calibrate again when you can",
            policy.policy_id,
        )
    return policy
