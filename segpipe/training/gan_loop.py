"""Stage 1 from the first epoch to the last: batches, schedule, averaging, validation, checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segpipe.config import TrainSettings
from segpipe.kinds import OBJECTIVES
from segpipe.metrics import SegmentationMetrics, confusion_matrix, segmentation_metrics
from segpipe.models.bundle import ModelSpec
from segpipe.models.device import autocast
from segpipe.models.discriminators.protocol import Adversary
from segpipe.models.generators.protocol import Generator
from segpipe.models.masks import class_logits
from segpipe.models.preprocess import normalise
from segpipe.progress import Advance, track
from segpipe.training.augmentation import view_size
from segpipe.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from segpipe.training.divergence import (
    require_bounded_loss,
    require_finite,
    require_numbers,
    require_sound,
)
from segpipe.training.fixed_windows import Windows, fixed_windows
from segpipe.training.gan_losses.game import gan_loss
from segpipe.training.gan_step import Batch, Game, Players, StepResult, train_step
from segpipe.training.history import EpochRecord
from segpipe.training.labelled_pixels import LabelledPixels, class_counts
from segpipe.training.pixel_losses import class_weights
from segpipe.training.processes import ALONE, Processes
from segpipe.training.recipe import (
    Recipe,
    choose_epochs,
    choose_recipe,
    make_optimizers,
    rate_factor,
    set_rate,
)
from segpipe.training.row_sampling import epoch_order
from segpipe.training.views import Emphasis, draw_views, emphasise

logger = logging.getLogger(__name__)
VALIDATIONS = 12
# Where in the training the generator is kept as it is, so that the judge meets masks of other mistakes.
EARLIER_SHARES = (0.3, 0.6)


@dataclass
class Progress:
    """What a training has come to; all of it goes through a checkpoint."""

    epoch: int
    history: list[EpochRecord]
    best_epoch: int
    best_quality: float
    best_generator: dict[str, Tensor]
    best_discriminator: dict[str, Tensor]
    earlier_generators: list[dict[str, Tensor]]


@dataclass
class Training:
    """The machinery of one training: networks, optimisers, pixels and the plan of its steps."""

    settings: TrainSettings
    spec: ModelSpec
    recipe: Recipe
    game: Game
    players: Players
    averaged: AveragedModel
    labelled: LabelledPixels
    taught: Tensor
    emphasis: Emphasis
    validation: LabelledPixels
    measured: Windows
    epochs: int
    device: str
    processes: Processes

    @classmethod
    def begin(
        cls,
        settings: TrainSettings,
        spec: ModelSpec,
        networks: tuple[Generator, Adversary],
        labelled: LabelledPixels,
        taught: Tensor,
        validation: LabelledPixels,
        device: str,
        pretrained: Collection[str] = (),
        processes: Processes = ALONE,
    ) -> Training:
        """Untrained networks and fresh optimisers; taught: the rows of labelled that the game is about.

        pretrained: the generator's parameters, by name, that come trained.
        """
        epochs = choose_epochs(settings, len(taught))
        recipe = choose_recipe(settings, epochs * math.ceil(len(taught) / settings.batch_size))
        generator, discriminator = networks
        processes.agree(generator, discriminator)
        optimizers = make_optimizers(generator, discriminator, recipe, pretrained)
        for optimizer in optimizers:
            processes.average_gradients_of(optimizer)
        players = Players(generator, discriminator, *optimizers)
        averaged = AveragedModel(generator, multi_avg_fn=averaging(recipe.averaging_decay), use_buffers=True)
        return cls(
            settings=settings,
            spec=spec,
            recipe=recipe,
            game=_make_game(settings, spec, labelled, device),
            players=players,
            averaged=averaged,
            labelled=labelled,
            taught=taught,
            emphasis=emphasise(labelled, taught),
            validation=validation,
            measured=fixed_windows(validation, spec, settings.seed),
            epochs=epochs,
            device=device,
            processes=processes,
        )

    def fresh_progress(self) -> Progress:
        """Nothing done yet."""
        return Progress(0, [], 0, -1.0, {}, {}, [])

    def run(self, progress: Progress, keep: Callable[[Progress], None]) -> None:
        """Train the epochs that are left; keep is called after each."""
        with track(self.epochs, "train", "epochs") as bar:
            bar.advance(progress.epoch)
            while progress.epoch < self.epochs:
                self._run_epoch(progress, bar)
                keep(progress)

    def _run_epoch(self, progress: Progress, bar: Advance) -> None:
        results = self._numbers(self._steps(progress.epoch), progress.epoch + 1)
        progress.epoch += 1
        self._require_sound(progress.epoch, results)
        quality = self.validate() if self._validates(progress.epoch) else None
        progress.history.append(_epoch_record(progress.epoch, results, self._rate(), quality))
        if quality is not None and quality.mean_iou > progress.best_quality:
            progress.best_epoch, progress.best_quality = progress.epoch, quality.mean_iou
            progress.best_generator = _copy_state(self.averaged.module)
            progress.best_discriminator = _copy_state(self.players.discriminator)
        if progress.epoch in {max(1, round(share * self.epochs)) for share in EARLIER_SHARES}:
            progress.earlier_generators.append(_copy_state(self.averaged.module))
        bar.advance(1, note=f"best validation mIoU {max(progress.best_quality, 0):.3f}")

    def _validates(self, epoch: int) -> bool:
        every = max(1, self.epochs // VALIDATIONS)
        return epoch == self.epochs or epoch % every == 0

    def _numbers(self, results: list[StepResult], epoch: int) -> list[dict[str, float]]:
        """The figures of an epoch's steps, fetched from the device at once. RunError: one is no number."""
        names = list(StepResult.__dataclass_fields__)
        fetched = torch.stack([torch.stack([*vars(result).values()]) for result in results]).tolist()
        figures = [dict(zip(names, step, strict=True)) for step in fetched]
        for step in figures:
            require_numbers(step, self._place(epoch), self._remedy(epoch))
        return figures

    def _steps(self, epoch: int) -> list[StepResult]:
        # Seeded per epoch, so that a resumed training draws what an unbroken one would have drawn.
        seed = self.settings.seed * 1_000_003 + epoch
        torch.manual_seed(self.processes.own_seed(seed))
        draws = torch.Generator().manual_seed(seed)
        self.players.generator.train()
        self.players.discriminator.train()
        order = epoch_order(self.taught, self.emphasis.weights, draws)
        split = order.split(self.settings.batch_size)
        batches = [self._two_at_least(self.processes.share(rows)) for rows in split]
        if not self.processes.is_first:  # the same draws for other rows would teach the same views
            draws.manual_seed(self.processes.own_seed(seed))
        results = []
        for number, rows in enumerate(batches):
            share = (epoch + number / len(batches)) / self.epochs
            results.append(
                train_step(self.players, self._prepare(share), self._batch(rows, draws), self.device)
            )
            self.processes.average_buffers(self.players.generator, self.players.discriminator)
            self.averaged.update_parameters(self.players.generator)
        return results

    def _require_sound(self, epoch: int, results: list[dict[str, float]]) -> None:
        """Before anything of the epoch is kept. RunError."""
        place, remedy = self._place(epoch), self._remedy(epoch)
        require_bounded_loss(_mean(results, "pixel_loss"), len(self.spec.classes), place, remedy)
        require_sound(
            {
                "generator": self.players.generator,
                "averaged generator": self.averaged.module,
                "discriminator": self.players.discriminator,
            },
            place,
            remedy,
        )
        # Of a term beyond all bounds Adam makes no step at all, and the weights look sound.
        optimisers = {
            "generator's optimiser": optimizer_tensors(self.players.generator_optimizer),
            "discriminator's optimiser": optimizer_tensors(self.players.discriminator_optimizer),
        }
        require_finite(optimisers, place, remedy)

    def _place(self, epoch: int) -> str:
        return f"epoch {epoch} of {self.epochs}"

    def _remedy(self, epoch: int) -> str:
        kept = f"; the checkpoint of epoch {epoch - 1} stays" if epoch > 1 else ""
        return (
            "train into another folder with a smaller --learning-rate "
            f"(it was {self.recipe.generator_rate:g}) or --adversarial-weight "
            f"({self.game.adversarial_weight:g}){kept}"
        )

    def _two_at_least(self, rows: Tensor) -> Tensor:
        # Networks of others normalise features of the whole image over the batch, which one image has not.
        return rows.repeat(2) if self.spec.foreign is not None and len(rows) == 1 else rows

    def _prepare(self, share: float) -> Game:
        if self.recipe.follows_schedule:
            factor = rate_factor(share)
            set_rate(self.players.generator_optimizer, self.recipe.generator_rate * factor)
            set_rate(self.players.discriminator_optimizer, self.recipe.discriminator_rate * factor)
        if share < self.recipe.adversarial_warm_up:
            return replace(self.game, adversarial_weight=0.0)
        return self.game

    def _batch(self, rows: Tensor, draws: torch.Generator) -> Batch:
        stride = self.players.generator.judged_stride
        crop = view_size(self.spec)
        seen, labels = draw_views(self.labelled, rows, crop, stride, self.emphasis.chance, draws)
        image = normalise(
            seen.to(self.device, non_blocking=True), self.spec.mean, self.spec.standard_deviation
        )
        return Batch(image, labels.to(self.device, non_blocking=True))

    def validate(self) -> SegmentationMetrics:
        """The averaged generator on the validation split, at the networks' scale; the first process's."""
        n_classes = len(self.spec.classes)
        counts = self._confusion() if self.processes.is_first else np.zeros((n_classes, n_classes), np.int64)
        return segmentation_metrics(self.processes.from_first(torch.from_numpy(counts)).numpy())

    def _confusion(self) -> np.ndarray:
        network = self.averaged.module.eval()
        confusion = None
        with torch.inference_mode():
            for images, masks in self.measured.batches(self.validation, self.settings.batch_size):
                image = normalise(images.to(self.device), self.spec.mean, self.spec.standard_deviation)
                with autocast(self.device):
                    logits = class_logits(network(image)).float()
                raised = nn.functional.interpolate(logits, size=masks.shape[-2:], mode="bilinear")
                counts = confusion_matrix(
                    masks.numpy(),
                    raised.argmax(1).cpu().numpy(),
                    len(self.spec.classes),
                    self.spec.ignore_index,
                )
                confusion = counts if confusion is None else confusion + counts
        assert confusion is not None
        return confusion

    def _rate(self) -> float:
        return float(self.players.generator_optimizer.param_groups[0]["lr"])

    def checkpoint(self, progress: Progress) -> Checkpoint:
        """All that `restore` needs to go on as if nothing had happened."""
        tensors = {
            "generator": self.players.generator.state_dict(),
            "discriminator": self.players.discriminator.state_dict(),
            "averaged": self.averaged.state_dict(),
            "generator_optimizer": optimizer_tensors(self.players.generator_optimizer),
            "discriminator_optimizer": optimizer_tensors(self.players.discriminator_optimizer),
            **progress_tensors(progress),
        }
        return Checkpoint(tensors, progress_data(progress))

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Put networks, optimisers and progress back to where the checkpoint was made."""
        tensors, data = checkpoint.tensors, checkpoint.data
        self.players.generator.load_state_dict(tensors["generator"])
        self.players.discriminator.load_state_dict(tensors["discriminator"])
        self.averaged.load_state_dict(tensors["averaged"])
        restore_optimizer(self.players.generator_optimizer, tensors.get("generator_optimizer", {}))
        restore_optimizer(self.players.discriminator_optimizer, tensors.get("discriminator_optimizer", {}))
        logger.info("resuming after epoch %d of %d", data["epoch"], self.epochs)
        return restore_progress(checkpoint)


def averaging(decay: float) -> Callable[..., None]:
    """The exponential average of weights, for AveragedModel; whole numbers, as indices are, stay whole."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, updates)
        else:
            for kept, value in zip(averaged, current, strict=True):
                kept.copy_(value)

    return update


def progress_tensors(progress: Progress) -> dict[str, dict[str, Tensor]]:
    """The weights worth keeping, for a checkpoint."""
    earlier = {f"earlier_{number}": state for number, state in enumerate(progress.earlier_generators)}
    return {
        "best_generator": progress.best_generator,
        "best_discriminator": progress.best_discriminator,
        **earlier,
    }


def progress_data(progress: Progress) -> dict[str, Any]:
    """All of the progress that is not weights, for a checkpoint."""
    return {
        "epoch": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_quality": progress.best_quality,
        "history": [asdict(record) for record in progress.history],
    }


def restore_progress(checkpoint: Checkpoint) -> Progress:
    """Undo `progress_tensors` and `progress_data`."""
    tensors, data = checkpoint.tensors, checkpoint.data
    return Progress(
        data["epoch"],
        [EpochRecord(**record) for record in data["history"]],
        data["best_epoch"],
        data["best_quality"],
        tensors.get("best_generator", {}),
        tensors.get("best_discriminator", {}),
        [tensors[name] for name in sorted(tensors) if name.startswith("earlier_")],
    )


def _make_game(settings: TrainSettings, spec: ModelSpec, labelled: LabelledPixels, device: str) -> Game:
    weights = class_weights(class_counts(labelled)).to(device)
    objective = OBJECTIVES[settings.objective]
    chosen = objective.adversarial_weight
    return Game(
        loss=gan_loss(settings.gan_loss),
        pixel_weight=objective.pixel_weight,
        adversarial_weight=settings.adversarial_weight if chosen is None else chosen,
        hard_masks=spec.shown_masks == "hard",
        class_weights=weights,
        ignore_index=spec.ignore_index,
    )


def _epoch_record(
    epoch: int, results: list[dict[str, float]], rate: float, quality: SegmentationMetrics | None
) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        **{name: _mean(results, name) for name in StepResult.__dataclass_fields__},
        learning_rate=rate,
        validation_mean_iou=quality.mean_iou if quality else None,
        validation_pixel_accuracy=quality.pixel_accuracy if quality else None,
    )


def _mean(results: list[dict[str, float]], name: str) -> float:
    return sum(result[name] for result in results) / len(results)


def _copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
