"""Stage 2 on a drawn problem: what the judge learns from, what it learns, and that a stop costs nothing."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from segpipe.confidence.combination import UNFITTED
from segpipe.confidence.score import SCORE_PARTS
from segpipe.errors import RunError
from segpipe.metrics import IouRule, image_iou
from segpipe.models.judge import Judge, Judgement, ShownMask
from segpipe.models.masks import mask_channels
from segpipe.models.preprocess import normalise, shown_image
from segpipe.models.verdict import give_verdict
from segpipe.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from segpipe.training.history import RoundRecord
from segpipe.training.holdout import Parts, split_parts, unseen_parts
from segpipe.training.judge_loop import VIEWS_SHARE, Scoring, Teachers, degrade_some
from segpipe.training.judge_losses import Lesson, judging_losses, true_iou
from segpipe.training.judge_masks import MIXTURE, Mixture, Source, make_wrong
from segpipe.training.labelled_pixels import LabelledPixels
from tests.support.labelled_arrays import IGNORED, in_memory, plain_spec

SPEC = plain_spec(("red", "green", "blue"), (32, 32))
TRUTHS = 0.07
PARTS = Parts(torch.arange(30), torch.arange(30, 50), torch.arange(50, 60))


class BlindGenerator(nn.Module):
    """Tells red from the others by the pixel, and surely; calls blue green, as surely."""

    output_stride = judged_stride = size_multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
            self.mix.weight.copy_(weight[:, :, None, None])
            self.mix.bias.copy_(torch.tensor([0.0, 2.1, -3.0]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.mix(functional.avg_pool2d(image, 2))


def drawn_blocks(n_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """32x32 images of 16x16 blocks in three colours, with noise; the mask names the colour."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(3, size=(n_images, 2, 2)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    colours = np.eye(3)[masks].transpose(0, 3, 1, 2) * 120 + 60
    images = np.clip(colours + rng.normal(0, 15, colours.shape), 0, 255).astype(np.uint8)
    return images, masks


def colour_blocks(n_images: int, seed: int) -> LabelledPixels:
    return in_memory(*drawn_blocks(n_images, seed), n_classes=3)


def begin(labelled: LabelledPixels, views: int, mixture: Mixture = MIXTURE) -> Scoring:
    torch.manual_seed(0)
    return Scoring.begin(
        seed=3,
        spec=SPEC,
        teachers=Teachers(BlindGenerator().eval(), [BlindGenerator().eval()]),  # type: ignore[arg-type, list-item]
        judge=Judge("unet", 3, 3),
        labelled=labelled,
        parts=PARTS,
        views=views * VIEWS_SHARE,
        device="cpu",
        mixture=mixture,
    )


def copy_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


@dataclass(frozen=True)
class Taught:
    """A stage 2 run to its end, and the weights from before it."""

    scoring: Scoring
    judge_before: dict[str, torch.Tensor]
    generator_before: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def taught() -> Taught:
    scoring = begin(colour_blocks(60, seed=3), views=1070)
    before = copy_of(scoring.judge), copy_of(scoring.teachers.generator)
    scoring.run(lambda: None)
    return Taught(scoring, *before)


@pytest.fixture(scope="module")
def untaught() -> Scoring:
    scoring = begin(colour_blocks(60, seed=3), views=1070)
    scoring.judge.eval()
    return scoring


UNSEEN_IMAGES, UNSEEN_MASKS = drawn_blocks(60, seed=9)
UNSEEN = in_memory(UNSEEN_IMAGES, UNSEEN_MASKS, n_classes=3)
TRUTH = torch.from_numpy(UNSEEN_MASKS[:, ::2, ::2]).long()


def unseen_images() -> torch.Tensor:
    return normalise(torch.from_numpy(UNSEEN_IMAGES), SPEC.mean, SPEC.standard_deviation)


def score(scoring: Scoring, labels: torch.Tensor) -> torch.Tensor:
    """(n,) the score of these masks (n,h,w) of the unseen images."""
    image = unseen_images()
    with torch.no_grad():
        probabilities = scoring.teachers.generator(image).softmax(dim=1)
        shown = ShownMask(mask_channels(labels, 3, ignore_index=-1), probabilities)
        judgement = scoring.judge(shown_image(image, (16, 16)), shown)
        return give_verdict(scoring.judge, judgement, shown, labels, scoring.spec).score


def own_masks() -> torch.Tensor:
    with torch.no_grad():
        return BlindGenerator()(unseen_images()).argmax(dim=1)


def test_the_judge_learns_what_the_generator_is_blind_to(taught: Taught, untaught: Scoring) -> None:
    own = own_masks()
    ious, _ = true_iou(mask_channels(own, 3, -1), TRUTH, IGNORED, "every_class")
    assert 0.2 < (ious < 0.99).float().mean() < 0.95
    before, after = (spearmanr(ious, score(scoring, own)).statistic for scoring in (untaught, taught.scoring))
    assert before < 0.5
    assert after > 0.65


def test_made_wrong_masks_score_below_true_ones(taught: Taught) -> None:
    draws = random.Random(0)
    wrong = torch.stack([make_wrong(mask, 3, draws) for mask in TRUTH])
    really = (wrong != TRUTH).any(dim=(1, 2))
    below = score(taught.scoring, TRUTH) > score(taught.scoring, wrong)
    assert below[really].float().mean() > 0.75


def test_the_losses_fall(taught: Taught) -> None:
    history = taught.scoring.history
    assert [record.round for record in history] == list(range(1, 21))
    for name, factor in (("correctness", 0.85), ("presence", 0.95)):
        values = [getattr(record, name) for record in history]
        assert np.mean(values[-5:]) < factor * np.mean(values[:5]), name


def test_the_generator_is_not_touched_and_all_of_the_judge_is_taught(taught: Taught) -> None:
    generator = taught.scoring.teachers.generator
    for name, weight in generator.state_dict().items():
        assert torch.equal(weight, taught.generator_before[name]), name
    assert all(parameter.grad is None for parameter in generator.parameters())
    for name, parameter in taught.scoring.judge.named_parameters():
        assert not torch.equal(parameter, taught.judge_before[name]), name


def test_the_score_is_fitted_and_monotone(taught: Taught) -> None:
    combination = taught.scoring.judge.combination
    assert not torch.equal(combination, taught.judge_before["combination"])
    assert (combination[1:] >= 0).all()


class StoppedError(Exception):
    pass


def stop_after(scoring: Scoring, rounds: int, model: str) -> Callable[[], None]:
    """Keep a checkpoint after each round as `segpipe train` does, and stop after so many."""

    def keep() -> None:
        data = {"rounds": [asdict(record) for record in scoring.history]}
        save_checkpoint(model, Checkpoint(scoring.tensors(), data))
        if len(scoring.history) == rounds:
            raise StoppedError

    return keep


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_a_stage_stopped_and_restored_ends_as_the_unbroken_one(tmp_path: Path, rounds: int) -> None:
    labelled = colour_blocks(60, seed=3)
    whole, broken, resumed = (begin(labelled, views=100) for _ in range(3))
    whole.run(lambda: None)
    with pytest.raises(StoppedError):
        broken.run(stop_after(broken, rounds, str(tmp_path)))
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint is not None
    resumed.restore(checkpoint.tensors, [RoundRecord(**record) for record in checkpoint.data["rounds"]])
    resumed.run(lambda: None)
    assert resumed.history == whole.history
    assert len(whole.history) == whole.rounds == 4
    for name, weight in whole.judge.state_dict().items():
        assert torch.equal(weight, resumed.judge.state_dict()[name]), name


def test_without_a_labelled_tuning_image_the_own_belief_makes_the_score(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, masks = drawn_blocks(60, seed=3)
    masks[50:] = IGNORED
    labelled = in_memory(images, masks, n_classes=3)
    scoring = begin(labelled, views=10)
    with caplog.at_level(logging.INFO):
        scoring.run(lambda: None)
    assert "the generator's own belief makes the score" in caplog.text
    assert scoring.judge.combination.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0.5, 0, 0]


def test_images_that_taught_the_generator_tune_nothing(caplog: pytest.LogCaptureFixture) -> None:
    scoring = replace(begin(colour_blocks(4, seed=3), views=10), parts=split_parts(4))
    scoring.judge.combination[8] = 1.0  # as a stage 2 that an older segpipe began holds it
    with caplog.at_level(logging.INFO):
        scoring.run(lambda: None)
    assert "too few images to hold one back" in caplog.text
    assert scoring.judge.combination.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0.5, 0, 0]


def test_the_score_is_fitted_on_the_generators_belief_as_the_spec_takes_it(untaught: Scoring) -> None:
    place = SCORE_PARTS.index("own_accuracy")
    plain, softened = (
        replace(untaught, spec=SPEC.model_copy(update={"belief_kind": kind})).tuning_views()[0][:, place]
        for kind in ("plain", None)
    )
    assert (plain > softened).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    ignored=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
    rule=st.sampled_from(get_args(IouRule)),
)
def test_the_true_iou_is_that_of_the_evaluation(seed: int, ignored: float, rule: IouRule) -> None:
    rng = np.random.default_rng(seed)
    masks, truths = rng.choice(4, p=[0.49, 0.4, 0.1, 0.01], size=(2, 3, 15, 16))
    truths[rng.random(truths.shape) < ignored] = IGNORED
    ious, measured = true_iou(
        mask_channels(torch.from_numpy(masks), 4, -1), torch.from_numpy(truths), IGNORED, rule
    )
    for mask, truth, iou, counts in zip(masks, truths, ious, measured, strict=True):
        expected = image_iou(truth, mask, 4, IGNORED, rule)
        assert counts == (not math.isnan(expected))
        if counts:
            assert iou.item() == pytest.approx(expected, abs=1e-6)


def lesson_of(mask: list[int], truth: list[int], real: bool = False) -> Lesson:
    """One image of one row of pixels and two classes, on which the generator has no opinion."""
    labels = torch.tensor([[mask]])
    return Lesson(
        image=torch.zeros(1, 3, 1, len(mask)),
        shown=ShownMask(mask_channels(labels, 2, -1), torch.full((1, 2, 1, len(mask)), 0.5)),
        labels=torch.tensor([[truth]]),
        real=torch.tensor([real]),
    )


def judgement_of(correctness: list[float]) -> Judgement:
    return Judgement(
        realness=torch.tensor([[[[0.0]]]]),
        correctness=torch.tensor([[[correctness]]]),
        presence=torch.tensor([[0.0, math.log(3)]]),
        image_iou=torch.tensor([0.0]),
        features=torch.zeros(1, 4),
        familiarity=torch.zeros(1),
    )


@pytest.mark.parametrize("real", [True, False])
def test_the_losses_by_hand(real: bool) -> None:
    losses = judging_losses(
        judgement_of([0.0, 0.0]), lesson_of([0, 1], [0, 0], real), IGNORED, TRUTHS, "every_class"
    )
    share = TRUTHS if real else 1 - TRUTHS
    assert losses.correctness.item() == pytest.approx(math.log(2))
    # Truly (1/2 + 0) / 2; believed 0.5 / 1.5 of each class.
    assert losses.expected_iou.item() == pytest.approx((1 / 3 - 1 / 4) ** 2, rel=1e-4)
    assert losses.image_iou.item() == pytest.approx(math.log(2))
    assert losses.presence.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert losses.realness.item() == pytest.approx(math.log(2) * 0.5 / share)


def test_ignored_pixels_say_nothing() -> None:
    truth = [0, 0, IGNORED, IGNORED]
    plain = judging_losses(
        judgement_of([0.3, -0.2]), lesson_of([0, 1], [0, 0]), IGNORED, TRUTHS, "every_class"
    )
    for mask, correctness in (([0, 0], [0.0, 5.0]), ([1, 1], [-5.0, 0.0]), ([1, 0], [3.0, 3.0])):
        judgement = judgement_of([0.3, -0.2, *correctness])
        losses = judging_losses(judgement, lesson_of([0, 1, *mask], truth), IGNORED, TRUTHS, "every_class")
        for name, value in vars(plain).items():
            torch.testing.assert_close(getattr(losses, name), value, msg=name)


def stacked(lessons: list[Lesson]) -> Lesson:
    return Lesson(
        image=torch.cat([lesson.image for lesson in lessons]),
        shown=ShownMask(
            torch.cat([lesson.shown.one_hot for lesson in lessons]),
            torch.cat([lesson.shown.probabilities for lesson in lessons]),
        ),
        labels=torch.cat([lesson.labels for lesson in lessons]),
        real=torch.cat([lesson.real for lesson in lessons]),
    )


def test_an_image_of_nothing_but_ignored_pixels_counts_for_nothing() -> None:
    measured, blank = lesson_of([0, 1], [0, 0]), lesson_of([1, 1], [IGNORED, IGNORED], real=True)
    one, other = judgement_of([0.3, -0.2]), judgement_of([4.0, -4.0])
    alone = judging_losses(one, measured, IGNORED, TRUTHS, "every_class")
    both = Judgement(
        **{name: torch.cat([value, getattr(other, name) + 2.0]) for name, value in vars(one).items()}
    )
    together = judging_losses(both, stacked([measured, blank]), IGNORED, TRUTHS, "every_class")
    for name, value in vars(alone).items():
        torch.testing.assert_close(getattr(together, name), value, msg=name)
    nothing = judging_losses(other, blank, IGNORED, TRUTHS, "every_class")
    assert all(value == 0 for value in vars(nothing).values())


def test_every_loss_reaches_what_it_is_about() -> None:
    judgement = judgement_of([0.3, -0.2])
    for value in vars(judgement).values():
        value.requires_grad_(True)
    judging_losses(judgement, lesson_of([0, 1], [0, 0]), IGNORED, TRUTHS, "every_class").total.backward()
    for name in ("realness", "correctness", "presence", "image_iou"):
        assert getattr(judgement, name).grad is not None, name
        assert getattr(judgement, name).grad.abs().sum() > 0, name


def test_a_share_of_the_images_is_degraded_and_none_changes_its_kind() -> None:
    images = torch.from_numpy(drawn_blocks(40, seed=1)[0]).float()
    untouched, half, every = (
        degrade_some(images, share, np.random.default_rng(0)) for share in (0.0, 0.5, 1.0)
    )
    assert torch.equal(untouched, images)
    changed = [(batch != images).any(dim=(1, 2, 3)).sum().item() for batch in (half, every)]
    assert 10 <= changed[0] <= 30
    assert changed[1] >= 38, "at a low strength one may look as before"
    assert every.dtype == torch.float32
    assert every.min() >= 0
    assert every.max() <= 255


@pytest.mark.parametrize(("unseen", "rows"), [(1.0, PARTS.judged), (0.0, PARTS.taught)])
def test_a_judge_is_shown_what_the_mixture_says(unseen: float, rows: torch.Tensor) -> None:
    labelled = colour_blocks(60, seed=3)
    asked: list[int] = []

    def watch(row: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(row)
        return labelled.pixels(row)

    halves = {Source.TRUTH: 0.5, Source.MADE_WRONG: 0.5}
    watched = replace(labelled, pixels=watch)
    scoring = begin(watched, views=80, mixture=Mixture(halves, unseen, degraded=0.0))
    # Too few to learn anything else than lessons from.
    scoring.parts = replace(scoring.parts, judged=scoring.parts.judged[:9], tuning=torch.arange(0))
    scoring.run(lambda: None)
    assert len(asked) >= 24
    assert set(asked) <= set(rows.tolist())


def begin_without_a_game(labelled: LabelledPixels, views: float) -> Scoring:
    torch.manual_seed(0)
    return Scoring.begin(
        seed=3,
        spec=SPEC.model_copy(update={"shown_masks": None}),
        teachers=Teachers(BlindGenerator().eval(), []),  # type: ignore[arg-type]
        judge=Judge("unet", 3, 3),
        labelled=labelled,
        parts=unseen_parts(len(labelled)),
        views=views,
        device="cpu",
    )


def test_without_a_game_and_earlier_checkpoints_the_judge_still_learns_which_masks_are_bad() -> None:
    scoring = begin_without_a_game(colour_blocks(60, seed=3), views=400)
    scoring.run(lambda: None)
    labels = own_masks()
    ious = [
        image_iou(truth.numpy(), mask.numpy(), 3, IGNORED, scoring.spec.rule)
        for truth, mask in zip(TRUTH, labels, strict=True)
    ]
    assert spearmanr(score(scoring, labels), ious).statistic > 0.6
    assert scoring.judge.combination.tolist() != list(UNFITTED), "the unseen tuning images fit the score"


def test_what_there_is_not_goes_to_the_masks_of_unseen_images() -> None:
    scoring = begin_without_a_game(colour_blocks(10, seed=3), views=8)
    shares = {source: share for source, share in scoring.mixture.sources.items() if share}
    assert set(shares) == {Source.OWN_UNSEEN, Source.TRUTH, Source.MADE_WRONG, Source.MISMATCHED}
    assert shares[Source.OWN_UNSEEN] == pytest.approx(0.40 + 0.25 + 0.10)
    assert sum(shares.values()) == pytest.approx(1)
    assert scoring.mixture.unseen == 1
    assert begin(colour_blocks(60, seed=3), views=10).mixture == MIXTURE


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_judge_that_comes_to_nothing_ends_the_stage_in_one_line(value: float) -> None:
    scoring, kept = begin(colour_blocks(60, seed=3), views=270), []
    with torch.no_grad():
        next(iter(scoring.judge.parameters())).fill_(value)
    with pytest.raises(RunError, match=r"diverged in round 1 of \d+ of learning to judge: .*another --seed"):
        scoring.run(lambda: kept.append(1))
    assert (kept, scoring.history) == ([], [])


def test_what_looks_unlike_all_that_was_learnt_from_scores_lower(taught: Taught) -> None:
    scoring = taught.scoring
    images, masks = drawn_blocks(12, seed=9)
    known, _ = scoring.judge_images(torch.from_numpy(images).float(), torch.from_numpy(masks))
    glaring = 20 * torch.from_numpy(images).float()  # such as no camera gives
    strange, _ = scoring.judge_images(glaring, torch.from_numpy(masks))
    place = SCORE_PARTS.index("familiarity")
    assert np.median(known[:, place]) == 0
    assert np.median(strange[:, place]) < -0.1
    assert scoring.judge.combination[1 + place] > 0
