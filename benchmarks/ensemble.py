"""The rival of five networks: generators of other seeds, and how much their masks agree.

Lakshminarayanan et al. 2017; the mean pairwise Dice of the masks wins the DKFZ benchmark of mask confidence
(Kahl et al. 2024). It costs a training per member, and a pass of each over every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segpipe.confidence.baselines import flip_tta
from segpipe.config import TrainSettings
from segpipe.datasets import open_dataset
from segpipe.models.bundle import ModelSpec, build_networks
from segpipe.models.generators.protocol import Generator, build_generator
from segpipe.training.gan_loop import Progress, Training
from segpipe.training.labelled_pixels import load_split


def members(data: str, spec: ModelSpec, folder: Path, epochs: int, count: int) -> list[Generator]:
    """Generators of the seeds 1 to count, supervised on split train; trained when folder lacks them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(1, count + 1):
        path = folder / f"member-{seed}.safetensors"
        if not path.exists():
            _train_member(data, spec, seed, epochs, path)
        member = build_generator(spec.architecture, spec.mask_channels)
        member.load_state_dict(load_file(path))
        found.append(member.eval())
    return found


def _train_member(data: str, spec: ModelSpec, seed: int, epochs: int, path: Path) -> None:
    settings = TrainSettings(data=data, model="-", objective="supervised", seed=seed, epochs=epochs)
    dataset = open_dataset(data)
    torch.manual_seed(seed)
    generator, discriminator = build_networks(spec)
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with (
        load_split(dataset, settings.split, spec, settings.cache_bytes) as labelled,
        load_split(dataset, settings.val_split, spec, settings.cache_bytes) as validation,
    ):
        training = Training.begin(
            settings,
            spec,
            (generator, discriminator.adversary),
            labelled,
            torch.arange(len(labelled)),
            validation,
            "cpu",
        )
        progress = training.fresh_progress()
        training.run(progress, _keep_nothing)
    weights = {name: tensor.contiguous() for name, tensor in progress.best_generator.items()}
    save_file(weights, path)


def _keep_nothing(progress: Progress) -> None:
    """A member is trained in one go."""


@torch.inference_mode()
def pairwise_dice(generators: Sequence[nn.Module], batch: Tensor) -> Tensor:
    """(B,) mean Dice of the masks of each two generators; classes as in baselines.flip_tta."""
    probabilities = [generator(batch).softmax(dim=1) for generator in generators]
    # flip_tta turns its second argument back, and so asks for it mirrored.
    dice = [flip_tta(one, other.flip(-1)) for one, other in combinations(probabilities, 2)]
    return torch.stack(dice).mean(dim=0)
