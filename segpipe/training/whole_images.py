"""What stage 2 needs of whole images at their own scale: the judge's look at one fitted image, and its score.

The generator stands still, so its masks of whole images are made once and looked at many times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segpipe.degradations import degrade_in_training
from segpipe.inspection.looks import value_counts
from segpipe.metrics import image_iou
from segpipe.models.bundle import Bundle, ModelCard, ModelSpec, build_discriminator
from segpipe.models.generators.protocol import Generator
from segpipe.models.judge import Judge, Judgement, ShownMask, shown_as
from segpipe.models.preprocess import resize_image
from segpipe.models.tiled import SMALLEST_PROBABILITY, ScaledImage, add_up, judge_scaled
from segpipe.progress import track
from segpipe.training.holdout import Parts
from segpipe.training.labelled_pixels import LabelledPixels

# Bounds on the masks that are made: network pixels of all images, bytes of memory that they take, and images.
MOST_PIXELS = 100_000_000
MOST_BYTES = 250_000_000
FEWEST_IMAGES = 24


@dataclass(frozen=True)
class WholeImages:
    """N images fitted to the working size, with the generator's tiled masks on the judged grid.

    images (N,3,H,W) uint8; labels (N,h,w) uint8; probabilities (N,K,h,w) float16; ious (N,): the masks' true
    IoU; present (N,K) float: whether the truth has a class.
    """

    images: Tensor
    labels: Tensor
    probabilities: Tensor
    ious: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, count: int, draws: torch.Generator) -> WholeImages:
        """Some of them, drawn uniformly, every other mirrored."""
        rows = torch.randint(len(self), (count,), generator=draws)
        mirrored = (torch.rand(count, generator=draws) < 0.5).tolist()

        def turn(maps: Tensor) -> Tensor:
            drawn = maps[rows]
            for row in range(count):
                if mirrored[row]:
                    drawn[row] = drawn[row].flip(-1)
            return drawn

        return WholeImages(
            turn(self.images),
            turn(self.labels),
            turn(self.probabilities),
            self.ious[rows],
            self.present[rows],
        )

    def shown(self, device: str) -> ShownMask:
        """The masks as the judge is shown them."""
        probabilities = self.probabilities.to(device).float().clamp(min=SMALLEST_PROBABILITY)
        return shown_as(self.labels.to(device).long(), probabilities.log())


def whole_losses(judgement: Judgement, whole: WholeImages) -> tuple[Tensor, Tensor]:
    """Cross-entropies of the image's IoU and of the presence of classes."""
    device = judgement.image_iou.device
    return (
        functional.binary_cross_entropy_with_logits(judgement.image_iou, whole.ious.to(device)),
        functional.binary_cross_entropy_with_logits(judgement.presence, whole.present.to(device)),
    )


def networks_in_training(spec: ModelSpec, generator: Generator, judge: Judge) -> Bundle:
    """The networks in the form in which whole images are labelled; they go on being trained."""
    discriminator = build_discriminator(spec.model_copy(update={"shown_masks": None}))
    discriminator.judge = judge
    card = ModelCard(
        model_id="in training",
        spec=spec,
        training_data={},
        training_settings={},
        metrics={},
        versions={},
        created_at="",
    )
    return Bundle(card, generator, discriminator)


def scaled(pixels: np.ndarray, spec: ModelSpec) -> ScaledImage:
    """An image 3xhxw uint8 at its scale, to be labelled at that size."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return ScaledImage(image, resize_image(image, spec.working_size), (image.shape[0], image.shape[1]))


def judged_parts(
    bundle: Bundle, pixels: np.ndarray, mask: np.ndarray, device: str
) -> tuple[np.ndarray, float]:
    """Parts (P,) of the score of the generator's mask of an image 3xhxw uint8 at its scale, and its IoU with
    the truth hxw; NaN where nothing is labelled."""
    (judged,) = judge_scaled(bundle, [scaled(pixels, bundle.spec)], device)
    iou = image_iou(mask, judged.mask, len(bundle.spec.classes), bundle.spec.ignore_index, bundle.spec.rule)
    return judged.parts.double().numpy(), iou


def make_masks(
    bundle: Bundle, labelled: LabelledPixels, rows: Tensor, damage: np.random.Generator, device: str
) -> WholeImages | None:
    """The generator's masks of whole images (n,), each as it is and degraded, without those of no labelled
    pixel; None when there is no other."""
    found = []
    with track(len(rows), "label whole images") as bar:
        for row in rows.tolist():
            pixels, mask = labelled.pixels(row)
            for copy in (pixels, degraded(pixels, damage)):
                found += _masked(bundle, copy, mask, device)
            bar.advance()
    return WholeImages(*(torch.stack(maps) for maps in zip(*found, strict=True))) if found else None


def degraded(pixels: np.ndarray, damage: np.random.Generator) -> np.ndarray:
    """An image 3xhxw uint8 in one of the ways in which a judge learns to doubt."""
    worse: np.ndarray = degrade_in_training(np.ascontiguousarray(pixels.transpose(1, 2, 0)), damage)
    return worse.transpose(2, 0, 1)


def _masked(bundle: Bundle, pixels: np.ndarray, mask: np.ndarray, device: str) -> list[tuple[Tensor, ...]]:
    """The fields of one of WholeImages; none where nothing is labelled."""
    spec, image = bundle.spec, scaled(pixels, bundle.spec)
    n_classes = len(spec.classes)
    (sums,) = add_up(bundle, [image], device)
    iou = image_iou(mask, sums.mask.cpu().numpy(), n_classes, spec.ignore_index, spec.rule)
    if math.isnan(iou):
        return []
    present = value_counts(mask)[:n_classes] > 0
    return [
        (
            torch.from_numpy(image.whole.transpose(2, 0, 1).copy()),
            sums.shown.argmax(dim=0).to(torch.uint8).cpu(),
            sums.probabilities.half().cpu(),
            torch.tensor(iou, dtype=torch.float32),
            torch.from_numpy(present).float(),
        )
    ]


def looked_at(labelled: LabelledPixels, spec: ModelSpec, stride: int, parts: Parts) -> Tensor:
    """Rows of the images whose masks are made, evenly spread: held back ones, half as many taught ones."""
    most = _how_many(labelled, spec, stride)
    judged = spread(parts.judged, most)
    taught = parts.taught[~torch.isin(parts.taught, judged)]
    return torch.cat([judged, spread(taught, min(most - len(judged), len(judged) // 2))])


def _how_many(labelled: LabelledPixels, spec: ModelSpec, stride: int) -> int:
    pixels = max(1.0, float(labelled.sizes.prod(dim=1).double().mean()))
    cells = math.prod(spec.working_size) // stride**2
    bytes_each = 3 * math.prod(spec.working_size) + (1 + 2 * len(spec.classes)) * cells
    # Each is there twice, as it is and degraded.
    return max(1, min(max(FEWEST_IMAGES, int(MOST_PIXELS / pixels)), MOST_BYTES // bytes_each) // 2)


def spread(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows, evenly spread over them."""
    count = min(len(rows), most)
    return rows[torch.arange(count) * len(rows) // max(count, 1)]
