"""The two stages of a training, each able to go on from a checkpoint: the game, then learning to judge."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from segpipe.config import TrainSettings
from segpipe.models.bundle import ModelSpec
from segpipe.models.discriminators.protocol import Adversary
from segpipe.models.generators.protocol import Generator
from segpipe.models.judge import Discriminator
from segpipe.training.checkpoint import Checkpoint, save_checkpoint
from segpipe.training.gan_loop import Progress, Training, progress_data, progress_tensors, restore_progress
from segpipe.training.history import RoundRecord
from segpipe.training.holdout import Parts
from segpipe.training.judge_loop import VIEWS_SHARE, Scoring, Teachers
from segpipe.training.labelled_pixels import LabelledPixels
from segpipe.training.processes import ALONE, Processes
from segpipe.training.resuming import resumable_settings

Stage = Literal["adversarial", "scoring"]


@dataclass(frozen=True)
class Work:
    """What both stages share.

    parts: the rows of labelled that each of them may learn from. pretrained: the generator's parameters, by
    name, that come trained.
    """

    settings: TrainSettings
    model_url: str
    spec: ModelSpec
    labelled: LabelledPixels
    parts: Parts
    device: str
    pretrained: frozenset[str] = frozenset()
    processes: Processes = ALONE

    def keep(self, stage: Stage, tensors: dict[str, dict[str, Tensor]], data: dict[str, Any]) -> None:
        """Put a checkpoint that `start_or_resume` can take up; the first process does."""
        if not self.processes.is_first:
            return
        known = {"settings": resumable_settings(self.settings), "stage": stage}
        if self.spec.foreign is not None:
            known["generator_files"] = self.spec.foreign.files
        save_checkpoint(self.model_url, Checkpoint(tensors, known | data))


def play(
    work: Work,
    networks: tuple[Generator, Adversary],
    validation: LabelledPixels,
    checkpoint: Checkpoint | None,
) -> Progress:
    """Stage 1, the game, or what it came to when the checkpoint is of stage 2."""
    if checkpoint and checkpoint.data["stage"] == "scoring":
        return restore_progress(checkpoint)
    training = Training.begin(
        work.settings,
        work.spec,
        networks,
        work.labelled,
        work.parts.taught,
        validation,
        work.device,
        work.pretrained,
        work.processes,
    )
    progress = training.restore(checkpoint) if checkpoint else training.fresh_progress()

    def keep(progress: Progress) -> None:
        made = training.checkpoint(progress)
        work.keep("adversarial", made.tensors, made.data)

    training.run(progress, keep)
    return progress


def judge(
    work: Work,
    generator: Generator,
    discriminator: Discriminator,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> list[RoundRecord]:
    """Stage 2: the judge of the discriminator learns; its rounds."""
    teachers = Teachers(
        _standing_still(generator, progress.best_generator),
        [_standing_still(generator, state) for state in progress.earlier_generators],
    )
    views = progress.epoch * len(work.parts.taught) * VIEWS_SHARE
    scoring = Scoring.begin(
        work.settings.seed,
        work.spec,
        teachers,
        discriminator.judge,
        work.labelled,
        work.parts,
        views,
        work.device,
        processes=work.processes,
    )
    if checkpoint and checkpoint.data["stage"] == "scoring":
        rounds = [RoundRecord(**record) for record in checkpoint.data["rounds"]]
        scoring.restore(checkpoint.tensors, rounds)

    def keep() -> None:
        tensors = progress_tensors(progress) | scoring.tensors()
        data = progress_data(progress) | {"rounds": [asdict(record) for record in scoring.history]}
        work.keep("scoring", tensors, data)

    scoring.run(keep)
    return scoring.history


def _standing_still(generator: Generator, state: dict[str, Tensor]) -> Generator:
    """A copy with these weights that is not trained any more."""
    still = copy.deepcopy(generator)
    still.load_state_dict(state)
    return still.eval().requires_grad_(False)
