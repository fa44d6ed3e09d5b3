"""Stage 2: the generator stands still, and the discriminator learns to judge its masks.

Shown masks of known rightness, it learns per pixel whether the label is right, per image what the IoU is and
which classes the truth has, and goes on telling true masks from all others, as in the game. The generator is
never trained on a judgement, or it would learn to please the judge.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segpipe.confidence.combination import FEWEST_IMAGES, UNFITTED, class_diversity, fit_combination
from segpipe.degradations import degrade_in_training
from segpipe.models.bundle import ModelSpec
from segpipe.models.device import autocast
from segpipe.models.generators.protocol import Generator
from segpipe.models.judge import Judge, Judgement, ShownMask, on_judged_grid, show, shown_as
from segpipe.models.masks import class_logits, labels_at_size
from segpipe.models.preprocess import normalise, shown_image
from segpipe.models.small_view import seen_again
from segpipe.models.verdict import give_verdict
from segpipe.progress import track
from segpipe.training.augmentation import view_size
from segpipe.training.checkpoint import optimizer_tensors, restore_optimizer
from segpipe.training.divergence import require_finite, require_numbers, require_sound
from segpipe.training.history import RoundRecord
from segpipe.training.holdout import Parts
from segpipe.training.judge_losses import Lesson, judging_losses, true_iou
from segpipe.training.judge_masks import (
    MIXTURE,
    Mixture,
    Source,
    draw_sources,
    draw_unseen,
    shown_labels,
    there_is,
)
from segpipe.training.labelled_pixels import LabelledPixels
from segpipe.training.processes import ALONE, Processes
from segpipe.training.recipe import rate_factor, set_rate
from segpipe.training.row_sampling import draw_row
from segpipe.training.views import draw_views, emphasise
from segpipe.training.whole_images import (
    WholeImages,
    degraded,
    judged_parts,
    looked_at,
    make_masks,
    networks_in_training,
    spread,
    whole_losses,
)

logger = logging.getLogger(__name__)

# Views of stage 2 as a share of those of stage 1: the judge has far less to learn.
VIEWS_SHARE = 0.3
MOST_ROUNDS = 20
BATCH = 8
RATE = 1e-3
WEIGHT_DECAY = 0.01
_REMEDY = "train again with another --seed"
# A tuning image is judged as it is, and degraded in so many ways.
DEGRADED_COPIES = 2
# So many images tell what is familiar, of those that taught and of those held back.
FAMILIAR_IMAGES = 120
# Where images are looked at in parts, each so many steps one is on whole ones.
WHOLE_EVERY = 3


@dataclass(frozen=True)
class Teachers:
    """The generator whose masks are to be judged, and the same earlier in its training; all stand still."""

    generator: Generator
    earlier: Sequence[Generator]


@dataclass
class Scoring:
    """The machinery of stage 2."""

    seed: int
    spec: ModelSpec
    teachers: Teachers
    judge: Judge
    optimizer: torch.optim.Optimizer
    labelled: LabelledPixels
    parts: Parts
    rounds: int
    steps_per_round: int
    device: str
    mixture: Mixture
    around_rare: float
    history: list[RoundRecord]
    processes: Processes

    @classmethod
    def begin(
        cls,
        seed: int,
        spec: ModelSpec,
        teachers: Teachers,
        judge: Judge,
        labelled: LabelledPixels,
        parts: Parts,
        views: float,
        device: str,
        mixture: Mixture = MIXTURE,
        processes: Processes = ALONE,
    ) -> Scoring:
        """A judge that has learnt nothing yet, nor what the game's discriminator knows: that is the images it
        was taught by heart, which makes a worse judge of others (Ash and Adams 2020, "On Warm-Starting Neural
        Network Training").

        Of the mixture it is shown what the teachers and parts have.
        """
        processes.agree(judge)
        optimizer = _make_optimizer(judge)
        processes.average_gradients_of(optimizer)
        steps = math.ceil(views / BATCH)
        rounds = min(MOST_ROUNDS, steps)
        return cls(
            seed=seed,
            spec=spec,
            teachers=teachers,
            judge=judge,
            optimizer=optimizer,
            labelled=labelled,
            parts=parts,
            rounds=rounds,
            steps_per_round=math.ceil(steps / rounds),
            device=device,
            mixture=there_is(mixture, earlier=bool(teachers.earlier), seen=len(parts.taught) > 0),
            # Of a fitted image a view shows much; of a large one it would show hardly a rare class.
            around_rare=0.0
            if labelled.fitted
            else emphasise(labelled, torch.cat([parts.taught, parts.judged])).chance,
            history=[],
            processes=processes,
        )

    def run(self, keep: Callable[[], None]) -> None:
        """Teach the judge the rounds that are left; keep is called after each. Then fit its score, which the
        first process does."""
        with track(self.rounds, "learn to judge", "rounds") as bar:
            bar.advance(len(self.history))
            whole = self._whole_images() if len(self.history) < self.rounds else None
            while len(self.history) < self.rounds:
                self._run_round(len(self.history), whole)
                keep()
                bar.advance(1, note=f"pixel loss {self.history[-1].correctness:.3f}")
        self.judge.eval()
        if self.processes.is_first:
            self._learn_familiarity()
            self._fit_score()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps besides `history`."""
        return {"judge": self.judge.state_dict(), "judge_optimizer": optimizer_tensors(self.optimizer)}

    def restore(self, tensors: dict[str, dict[str, Tensor]], history: list[RoundRecord]) -> None:
        """Back to where the checkpoint was made."""
        self.judge.load_state_dict(tensors["judge"])
        restore_optimizer(self.optimizer, tensors["judge_optimizer"])
        self.history = history
        logger.info("resuming stage 2 after round %d of %d", len(history), self.rounds)

    def _whole_images(self) -> WholeImages | None:
        """The generator's masks of images at their scale; None where every image is fitted."""
        if self.spec.scale is None:
            return None
        self.judge.eval()  # in training it would change with every look, and a resumed stage looks once more
        networks = networks_in_training(self.spec, self.teachers.generator, self.judge)
        rows = looked_at(self.labelled, self.spec, self.teachers.generator.judged_stride, self.parts)
        return make_masks(networks, self.labelled, rows, np.random.default_rng(self.seed), self.device)

    def _run_round(self, number: int, whole: WholeImages | None) -> None:
        # Seeded per round, so that a resumed stage draws what an unbroken one would have drawn.
        seed = self.processes.own_seed(self.seed * 1_000_003 + number)
        torch.manual_seed(seed)
        draws, augmentation = random.Random(seed), torch.Generator().manual_seed(seed)
        damage = np.random.default_rng(seed)
        self.judge.train()
        losses = []
        for step in range(self.steps_per_round):
            share = (number + step / self.steps_per_round) / self.rounds
            set_rate(self.optimizer, RATE * rate_factor(share))
            losses.append(self._step(self._lesson(draws, augmentation, damage)))
            if whole is not None and step % WHOLE_EVERY == 0:
                self._step_on_whole(whole.draw(self.processes.share_of(BATCH), augmentation))
        figures = torch.stack([torch.stack([*step.values()]) for step in losses]).tolist()
        for step_figures in figures:
            named = dict(zip(losses[0], step_figures, strict=True))
            require_numbers(named, self._place(number), _REMEDY)
        require_sound({"judge": self.judge}, self._place(number), _REMEDY)
        require_finite({"judge's optimiser": optimizer_tensors(self.optimizer)}, self._place(number), _REMEDY)
        means = {
            name: float(np.mean(column))
            for name, column in zip(losses[0], zip(*figures, strict=True), strict=True)
        }
        self.history.append(RoundRecord(round=number + 1, **means))

    def _place(self, number: int) -> str:
        return f"round {number + 1} of {self.rounds} of learning to judge"

    def _step(self, lesson: Lesson) -> dict[str, Tensor]:
        with autocast(self.device):
            judgement = self.judge(lesson.image, lesson.shown)
        truths = self.mixture.sources[Source.TRUTH]
        losses = judging_losses(judgement, lesson, self.spec.ignore_index, truths, self.spec.rule)
        self._learn(losses.total)
        return {name: value.detach() for name, value in vars(losses).items()}

    def _step_on_whole(self, whole: WholeImages) -> None:
        image = normalise(whole.images.to(self.device), self.spec.mean, self.spec.standard_deviation)
        with autocast(self.device):
            judgement = self.judge(
                shown_image(image, (whole.labels.shape[1], whole.labels.shape[2])), whole.shown(self.device)
            )
        iou, presence = whole_losses(judgement, whole)
        self._learn(iou + presence)

    def _learn(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.processes.average_buffers(self.judge)

    def _lesson(
        self, draws: random.Random, augmentation: torch.Generator, damage: np.random.Generator
    ) -> Lesson:
        sources = draw_sources(self.mixture, self.processes.share_of(BATCH), draws)
        unseen = [draw_unseen(self.mixture, source, draws) for source in sources]
        rows = [self._draw(self.parts.judged if held else self.parts.taught, draws) for held in unseen]
        seen, labels = draw_views(
            self.labelled,
            torch.tensor(rows),
            view_size(self.spec),
            self.teachers.generator.judged_stride,
            self.around_rare,
            augmentation,
        )
        degraded = degrade_some(seen, self.mixture.degraded, damage).to(self.device, non_blocking=True)
        image = normalise(degraded, self.spec.mean, self.spec.standard_deviation)
        return self._show(image, labels.to(self.device, non_blocking=True), sources, draws)

    def _draw(self, rows: Tensor, draws: random.Random) -> int:
        return draw_row(rows, self.labelled.weights[rows], draws)

    @torch.no_grad()
    def _show(self, image: Tensor, labels: Tensor, sources: list[Source], draws: random.Random) -> Lesson:
        logits = self._logits(self.teachers.generator, image)
        own = logits.argmax(dim=1)
        earlier = own.clone()
        for row, source in enumerate(sources):
            if source is Source.EARLIER:
                teacher = draws.choice(self.teachers.earlier)
                earlier[row] = self._logits(teacher, image[row : row + 1]).argmax(dim=1)[0]
        # What nobody labelled is shown as the generator sees it.
        truth = torch.where(labels == self.spec.ignore_index, own, labels)
        shown = shown_labels(sources, own, earlier, truth, logits.shape[1], draws)
        return Lesson(
            image=shown_image(image, (own.shape[1], own.shape[2])),
            shown=shown_as(shown, logits),
            labels=labels,
            real=torch.tensor([source is Source.TRUTH for source in sources], device=image.device),
        )

    def _logits(self, generator: Generator, image: Tensor) -> Tensor:
        with autocast(self.device):
            logits = class_logits(generator(image)).float()
        return on_judged_grid(logits, (image.shape[2], image.shape[3]), generator.judged_stride)

    def _learn_familiarity(self) -> None:
        """What images like those that were learnt from look like to the judge, as they are and degraded.

        Not of images that are looked at in tiles: few of those are ever looked at whole.
        """
        taught, held_back = self.parts.taught, torch.cat([self.parts.judged, self.parts.tuning])
        if not len(taught):
            taught, held_back = self.parts.judged, self.parts.tuning
        if self.spec.scale is not None or min(len(taught), len(held_back)) < FEWEST_IMAGES:
            logger.info("what other images look like is not learnt: all are as familiar to the judge")
            return
        damage = np.random.default_rng(self.seed)
        self.judge.familiarity.learn(self._features(taught, damage), self._features(held_back, damage))

    @torch.no_grad()
    def _features(self, rows: Tensor, damage: np.random.Generator) -> Tensor:
        """(N,F) of images of these rows, spread over them, each as it is and degraded."""
        found = []
        for part in spread(rows, FAMILIAR_IMAGES).split(BATCH):
            images, _ = self.labelled.batch(part)
            for share in (0.0, 1.0):
                _, judgement = self._look(self._normalised(degrade_some(images.float(), share, damage)))
                found.append(judgement.features.cpu())
        return torch.cat(found)

    def _fit_score(self) -> None:
        # A stopped stage 2 of an older segpipe may hold another.
        self.judge.combination.copy_(torch.tensor(UNFITTED))
        if not len(self.parts.tuning) or torch.isin(self.parts.tuning, self.parts.taught).any():
            logger.info("too few images to hold one back: the generator's own belief makes the score")
            return
        parts, ious = self.tuning_views()
        if len(ious) < FEWEST_IMAGES:
            logger.info(
                "%d views of tuning images are too few to fit: the generator's own belief makes the score",
                len(ious),
            )
            return
        diversity = class_diversity(self.labelled.counts.numpy())
        combination = fit_combination(parts, ious, diversity)
        self.judge.combination.copy_(torch.from_numpy(combination))
        require_sound({"judge": self.judge}, "the fit of its score", _REMEDY)

    def tuning_views(self) -> tuple[np.ndarray, np.ndarray]:
        """Parts (n,P) and true IoUs (n,) of the tuning images, whole, as they are and degraded."""
        damage = np.random.default_rng(self.seed)
        if self.spec.scale is not None:
            return self._tuning_views_at_scale(damage)
        found = []
        for rows in self.parts.tuning.split(BATCH):
            images, masks = self.labelled.batch(rows)
            for copy in range(1 + DEGRADED_COPIES):
                seen = degrade_some(images.float(), 1.0 if copy else 0.0, damage)
                parts, ious = self.judge_images(seen, masks)
                known = np.isfinite(ious)
                found.append((parts[known], ious[known]))
        return np.concatenate([parts for parts, _ in found]), np.concatenate([ious for _, ious in found])

    def _tuning_views_at_scale(self, damage: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        networks = networks_in_training(self.spec, self.teachers.generator, self.judge)
        parts, ious = [], []
        for row in self.parts.tuning.tolist():
            pixels, mask = self.labelled.pixels(row)
            for copy in range(1 + DEGRADED_COPIES):
                seen = degraded(pixels, damage) if copy else pixels
                found, iou = judged_parts(networks, seen, mask, self.device)
                if math.isfinite(iou):
                    parts.append(found)
                    ious.append(iou)
        return np.array(parts).reshape(len(ious), -1), np.array(ious)

    @torch.no_grad()
    def judge_images(self, images: Tensor, masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Parts (B,P) of the generator's masks of images (B,3,H,W), float 0 to 255, and their true IoUs (B,).

        masks (B,H,W) is the truth; the IoU is measured on the networks' own grid, NaN where nothing is
        labelled.
        """
        image = self._normalised(images)
        shown, judgement = self._look(image)
        labels = shown.one_hot.argmax(dim=1)
        again = seen_again(self.spec, self.teachers.generator, image, labels, self.device)
        truth = labels_at_size(masks.to(self.device), (labels.shape[1], labels.shape[2]))
        iou, known = true_iou(shown.one_hot, truth, self.spec.ignore_index, self.spec.rule)
        parts = give_verdict(self.judge, judgement, shown, again, self.spec).parts
        return parts.double().cpu().numpy(), iou.where(known, torch.nan).double().cpu().numpy()

    def _look(self, image: Tensor) -> tuple[ShownMask, Judgement]:
        """The generator's masks of normalised images (B,3,H,W), and what the judge says of them."""
        shown = show(self._logits(self.teachers.generator, image))
        with autocast(self.device):
            size = (shown.one_hot.shape[2], shown.one_hot.shape[3])
            return shown, self.judge(shown_image(image, size), shown)

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images.to(self.device), self.spec.mean, self.spec.standard_deviation)


def _make_optimizer(judge: Judge) -> torch.optim.Optimizer:
    # The trunk first, as in the checkpoints of earlier versions, which name parameters by their place.
    trunk = list(judge.adversary.parameters())
    known = {id(parameter) for parameter in trunk}
    rest = [parameter for parameter in judge.parameters() if id(parameter) not in known]
    return torch.optim.AdamW([*trunk, *rest], lr=RATE, weight_decay=WEIGHT_DECAY)


def degrade_some(images: Tensor, share: float, damage: np.random.Generator) -> Tensor:
    """Degrade this share of the images (B,3,H,W), float 0 to 255, each in its own way."""
    degraded = images.clone()
    for row in np.flatnonzero(damage.random(len(images)) < share):
        pixels = images[row].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        worse = torch.from_numpy(degrade_in_training(pixels, damage))
        degraded[row] = worse.permute(2, 0, 1)
    return degraded
