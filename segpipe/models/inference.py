"""Generator and judge on a batch, and masks at each image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segpipe.confidence.score import adversarial_score
from segpipe.models.bundle import Bundle
from segpipe.models.device import autocast, fetch_together, stack_to_device
from segpipe.models.full_size import raised_each
from segpipe.models.judge import Judgement, ShownMask, on_judged_grid, shown_as
from segpipe.models.masks import class_logits, mask_channels, probabilities
from segpipe.models.preprocess import normalise, resize_image, shown_image
from segpipe.models.small_view import seen_again
from segpipe.models.verdict import Verdict, give_verdict


@dataclass(frozen=True)
class Prediction:
    """logits (B,K,h,w) of the classes, float32; labels (B,h,w) uint8, the mask they make; verdict: what the
    judge says about it."""

    logits: Tensor
    labels: Tensor
    verdict: Verdict


@dataclass(frozen=True)
class FinishedMask:
    """mask HxW uint8 at the image's own size; in main memory, as in Verdict: parts (P,), score (),
    class_confidences (K,), correctness (h,w)."""

    mask: np.ndarray
    parts: Tensor
    score: Tensor
    class_confidences: Tensor
    correctness: np.ndarray


def prepare(bundle: Bundle, images: Sequence[np.ndarray], device: str) -> Tensor:
    """Images HxWx3 uint8 of any sizes -> (B,3,h,w) normalised at the working size, on the device."""
    resized = [resize_image(image, bundle.spec.working_size) for image in images]
    return normalised(bundle, stack_to_device(resized, device))


def normalised(bundle: Bundle, batch: Tensor) -> Tensor:
    """(B,h,w,3) uint8 -> (B,3,h,w) as the networks take it."""
    return normalise(batch.permute(0, 3, 1, 2), bundle.spec.mean, bundle.spec.standard_deviation)


def predict(bundle: Bundle, batch: Tensor, device: str) -> Prediction:
    """Class logits and the verdict on the mask they make: a pass of both networks, and a second look."""
    return judge_masks(bundle, batch, generate(bundle, batch, device), device)


@torch.inference_mode()
def generate(bundle: Bundle, batch: Tensor, device: str) -> Tensor:
    """The generator's logits (B,1 or K,h,w), float32, of a prepared batch."""
    with autocast(device):
        return bundle.generator(batch).float()


@torch.inference_mode()
def judge_masks(bundle: Bundle, batch: Tensor, generated: Tensor, device: str) -> Prediction:
    """The generator's logits of a batch as class logits, with the verdict on the mask they make."""
    logits = class_logits(generated)
    labels = logits.argmax(dim=1)
    shown, again, judgement = look(bundle, batch, logits, labels, device)
    verdict = give_verdict(bundle.discriminator.judge, judgement, shown, again, bundle.spec)
    return Prediction(logits, labels.to(torch.uint8), verdict)


@torch.inference_mode()
def look(
    bundle: Bundle, batch: Tensor, logits: Tensor, labels: Tensor, device: str
) -> tuple[ShownMask, Tensor, Judgement]:
    """The judge's one look at a batch and the generator's second: what the judge was shown, of class logits
    (B,K,h,w) and their argmax (B,h,w); the labels seen again, on the same grid; and what the judge says."""
    size, stride = (batch.shape[2], batch.shape[3]), bundle.generator.judged_stride
    with autocast(device):
        judged = on_judged_grid(logits, size, stride)
        judged_labels = labels if judged is logits else judged.argmax(dim=1)
        shown = shown_as(judged_labels, judged)
        image = shown_image(batch, (judged.shape[2], judged.shape[3]))
        judgement = bundle.discriminator.judge(image, shown)
    again = seen_again(bundle.spec, bundle.generator, batch, judged_labels, device)
    return shown, again, judgement


@torch.inference_mode()
def fetched(verdict: Verdict) -> Verdict:
    """The verdict, float32, in main memory; by one copy, since each waits for the device."""
    return Verdict(*fetch_together([part.float() for part in _parts_of(verdict)]))


@torch.inference_mode()
def finished(prediction: Prediction, sizes: Sequence[tuple[int, int]]) -> list[FinishedMask]:
    """The masks at the images' own sizes (height, width), made on the device; all comes by one copy."""
    masks = raised_each(prediction.logits, prediction.labels, sizes)
    verdict = [part.float() for part in _parts_of(prediction.verdict)]
    found = fetch_together([*verdict, *masks])
    parts, score, by_class, correctness = found[: len(verdict)]
    return [
        FinishedMask(mask.numpy(), parts[row], score[row], by_class[row], correctness[row, 0].numpy())
        for row, mask in enumerate(found[len(verdict) :])
    ]


def _parts_of(verdict: Verdict) -> list[Tensor]:
    return [verdict.parts, verdict.score, verdict.class_confidences, verdict.correctness]


@torch.inference_mode()
def raw_adversarial_score(bundle: Bundle, batch: Tensor, generated: Tensor, device: str) -> Tensor | None:
    """(B,) what the discriminator of the game alone would say of the generator's logits of a batch: it labels
    nothing, but is the yardstick. None where there was no game."""
    adversary = bundle.discriminator.adversary
    if adversary is None:
        return None
    size, stride = (batch.shape[2], batch.shape[3]), bundle.generator.judged_stride
    played = on_judged_grid(generated, size, stride)
    image = shown_image(batch, (played.shape[2], played.shape[3]))
    with autocast(device):
        realness = adversary(image, _played_mask(bundle, played))
    return adversarial_score(realness)


def _played_mask(bundle: Bundle, logits: Tensor) -> Tensor:
    if bundle.spec.shown_masks == "soft":
        return probabilities(logits)
    labels = class_logits(logits).argmax(dim=1)
    return mask_channels(labels, logits.shape[1], ignore_index=-1)
