"""Stage 2 where images are looked at in parts: whole masks are made as at labelling, and are learnt from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from segpipe.confidence.score import SCORE_PARTS
from segpipe.metrics import image_iou
from segpipe.models.judge import Judge
from segpipe.models.preprocess import normalise, shown_image
from segpipe.models.tiled import judge_scaled
from segpipe.training import whole_images
from segpipe.training.holdout import Parts
from segpipe.training.judge_loop import Scoring, Teachers
from segpipe.training.labelled_pixels import LabelledPixels
from segpipe.training.whole_images import (
    WholeImages,
    looked_at,
    make_masks,
    networks_in_training,
    scaled,
    whole_losses,
)
from tests.support.labelled_arrays import IGNORED, in_memory, plain_spec

SPEC = plain_spec(("red", "green", "blue"), (32, 64)).model_copy(
    update={"scale": 1.0, "tile": (48, 48), "margin": 8}
)
PARTS = Parts(torch.arange(20), torch.arange(20, 32), torch.arange(32, 40))


class ColourGenerator(nn.Module):
    """Names the strongest channel, surely; calls blue green."""

    output_stride = judged_stride = 2
    size_multiple = 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        red, green, blue = functional.avg_pool2d(image, 2).mul(5).unbind(dim=1)
        return torch.stack([red, torch.maximum(green, blue), torch.full_like(red, -20)], dim=1)


def blocks(n_images: int, seed: int) -> LabelledPixels:
    """Images of 16x16 blocks of three colours, each image of its own size and colours."""
    random = np.random.default_rng(seed)
    masks, images = [], []
    for number in range(n_images):
        shares = random.dirichlet((0.5, 0.5, 0.5))
        block = random.choice(3, size=(3 + number % 3, 5), p=shares)
        mask = block.repeat(16, 0).repeat(16, 1).astype(np.uint8)
        colours = np.eye(3)[mask].transpose(2, 0, 1) * 150 + 40
        images.append((colours + random.normal(0, 10, colours.shape)).clip(0, 255).astype(np.uint8))
        masks.append(mask)
    return in_memory(images, masks, 3, fitted=False)


def begin(labelled: LabelledPixels, views: float) -> Scoring:
    torch.manual_seed(0)
    generator = ColourGenerator().eval()
    teachers = Teachers(generator, [generator])  # type: ignore[arg-type, list-item]
    return Scoring.begin(3, SPEC, teachers, Judge("unet", 3, 3), labelled, PARTS, views, "cpu")


@pytest.fixture(scope="module")
def made() -> tuple[LabelledPixels, WholeImages]:
    labelled = blocks(6, seed=1)
    networks = networks_in_training(SPEC, ColourGenerator().eval(), Judge("unet", 3, 3).eval())  # type: ignore[arg-type]
    masks = make_masks(networks, labelled, torch.arange(6), np.random.default_rng(0), "cpu")
    assert masks is not None
    return labelled, masks


def test_each_image_has_its_mask_as_it_is_and_degraded(made: tuple[LabelledPixels, WholeImages]) -> None:
    labelled, masks = made
    assert len(masks) == 12
    assert masks.images.shape == (12, 3, 32, 64)
    assert masks.labels.shape == (12, 16, 32)
    for row in range(6):
        _, truth = labelled.pixels(row)
        own = np.where(truth == 2, 1, truth)
        assert masks.ious[2 * row].item() == pytest.approx(
            image_iou(truth, own, 3, IGNORED, "every_class"), abs=1e-6
        )
        assert masks.present[2 * row].tolist() == [float(value in truth) for value in range(3)]
        shares = [(own == value).mean() for value in range(3)]
        assert masks.probabilities[2 * row].float().mean(dim=(1, 2)).tolist() == pytest.approx(
            shares, abs=0.02
        )
    assert masks.probabilities.float().sum(dim=1).sub(1).abs().max() < 0.01
    assert (masks.images[::2] != masks.images[1::2]).any()


def test_an_object_that_the_fitted_image_cannot_show_is_present_all_the_same() -> None:
    mask = np.zeros((200, 400), np.uint8)
    mask[3, 5] = 1
    labelled = in_memory([np.full((3, *mask.shape), 90, np.uint8)], [mask], 3, fitted=False)
    networks = networks_in_training(SPEC, ColourGenerator().eval(), Judge("unet", 3, 3).eval())  # type: ignore[arg-type]
    masks = make_masks(networks, labelled, torch.tensor([0]), np.random.default_rng(0), "cpu")
    assert masks is not None
    assert masks.present[0].tolist() == [1, 1, 0]


def test_an_image_without_a_labelled_pixel_teaches_nothing() -> None:
    mask = np.full((40, 40), IGNORED, np.uint8)
    labelled = in_memory([np.zeros((3, 40, 40), np.uint8)], [mask], 3, fitted=False)
    networks = networks_in_training(SPEC, ColourGenerator().eval(), Judge("unet", 3, 3).eval())  # type: ignore[arg-type]
    assert make_masks(networks, labelled, torch.tensor([0]), np.random.default_rng(0), "cpu") is None


def test_drawn_ones_are_mirrored_as_a_whole(made: tuple[LabelledPixels, WholeImages]) -> None:
    _, masks = made
    drawn = masks.draw(64, torch.Generator().manual_seed(0))
    turned = 0
    for image, labels, iou in zip(drawn.images, drawn.labels, drawn.ious, strict=True):
        (row, mirrored), *_ = [
            (row, mirrored)
            for row in range(12)
            for mirrored in (False, True)
            if torch.equal(image, masks.images[row].flip(-1) if mirrored else masks.images[row])
        ]
        turned += mirrored
        assert torch.equal(labels, masks.labels[row].flip(-1) if mirrored else masks.labels[row])
        assert iou == masks.ious[row]
    assert 20 < turned < 44


def test_of_held_back_images_as_many_as_may_be_and_half_as_many_taught_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labelled = replace(blocks(1, seed=1), sizes=torch.tensor([[100, 100]] * 40))
    assert looked_at(labelled, SPEC, 2, PARTS).tolist() == [*range(20, 32), 0, 3, 6, 10, 13, 16]
    monkeypatch.setattr(whole_images, "MOST_PIXELS", 0)
    monkeypatch.setattr(whole_images, "FEWEST_IMAGES", 8)  # of which half are degraded copies
    assert looked_at(labelled, SPEC, 2, PARTS).tolist() == [20, 23, 26, 29]
    monkeypatch.setattr(whole_images, "MOST_BYTES", 0)
    assert looked_at(labelled, SPEC, 2, PARTS).tolist() == [20]


def test_the_judge_learns_from_whole_images_what_it_is_asked_of_them() -> None:
    labelled = blocks(40, seed=3)
    scoring = begin(labelled, views=400)
    unseen = make_masks(
        networks_in_training(SPEC, scoring.teachers.generator, scoring.judge),
        blocks(30, seed=8),
        torch.arange(30),
        np.random.default_rng(1),
        "cpu",
    )
    assert unseen is not None
    before = measured(scoring, unseen)
    scoring.run(lambda: None)
    after = measured(scoring, unseen)
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]


@torch.no_grad()
def measured(scoring: Scoring, whole: WholeImages) -> tuple[float, float]:
    """The losses of the judge on these."""
    scoring.judge.eval()
    image = normalise(whole.images, SPEC.mean, SPEC.standard_deviation)
    losses = whole_losses(scoring.judge(shown_image(image, (16, 32)), whole.shown("cpu")), whole)
    return losses[0].item(), losses[1].item()


def test_the_score_is_fitted_to_what_labelling_makes_of_whole_images() -> None:
    labelled = blocks(40, seed=3)
    scoring = begin(labelled, views=10)
    scoring.judge.eval()
    parts, ious = scoring.tuning_views()
    assert parts.shape == (24, len(SCORE_PARTS))
    networks = networks_in_training(SPEC, scoring.teachers.generator, scoring.judge)
    for number, row in enumerate(PARTS.tuning.tolist()):
        pixels, truth = labelled.pixels(row)
        (judged,) = judge_scaled(networks, [scaled(pixels, SPEC)], "cpu")
        assert parts[3 * number].tolist() == pytest.approx(judged.parts.tolist(), abs=1e-5)
        own = np.where(truth == 2, 1, truth)
        assert ious[3 * number] == pytest.approx(image_iou(truth, own, 3, IGNORED, "every_class"))
    assert all(math.isfinite(iou) for iou in ious)
