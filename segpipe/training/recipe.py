"""How long and how fast a training goes: epochs, step sizes, averaging, optimisers."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from segpipe.config import TrainSettings
from segpipe.kinds import OBJECTIVES

# Views a model is trained on when the number of epochs is left open: few labelled images are seen more often.
VIEWS = 24_000
FEWEST_EPOCHS = 10
ADAM_BETAS = (0.5, 0.999)
PUBLISHED_RATE = 2e-4
SCHEDULED_RATE = 1.5e-3
WEIGHT_DECAY = 0.01
WARM_UP_SHARE = 0.1
# The rate of what comes trained, as a share of that of what is new.
PRETRAINED_SHARE = 0.1


@dataclass(frozen=True)
class Recipe:
    """How the optimisers go.

    Rates are step sizes at their peak; averaging_decay is that of the exponential average of the weights
    (0: none); adversarial_warm_up is the share of the training (0 to 1) before the adversarial term counts.
    """

    generator_rate: float
    discriminator_rate: float
    follows_schedule: bool
    averaging_decay: float
    adversarial_warm_up: float


def choose_epochs(settings: TrainSettings, n_images: int) -> int:
    """The epochs asked for, else as many as give VIEWS views of n_images images."""
    return settings.epochs or max(FEWEST_EPOCHS, round(VIEWS / n_images))


def choose_recipe(settings: TrainSettings, steps: int) -> Recipe:
    """The recipe of the objective in segpipe.kinds; steps in all."""
    published = OBJECTIVES[settings.objective].recipe == "published"
    rate = settings.learning_rate or (PUBLISHED_RATE if published else SCHEDULED_RATE)
    return Recipe(
        generator_rate=rate,
        discriminator_rate=min(rate, PUBLISHED_RATE),
        follows_schedule=not published,
        averaging_decay=0.0 if published else min(0.999, max(0.0, 1 - 10 / steps)),
        adversarial_warm_up=0.0 if published else WARM_UP_SHARE,
    )


def rate_factor(share: float) -> float:
    """A linear rise over the first tenth, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    if share < WARM_UP_SHARE:
        return 0.1 + 0.9 * share / WARM_UP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))


def make_optimizers(
    generator: nn.Module, discriminator: nn.Module, recipe: Recipe, pretrained: Collection[str] = ()
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """pretrained: the generator's parameters, by name, that change at PRETRAINED_SHARE of its rate."""
    groups = _groups(generator, pretrained)
    if recipe.follows_schedule:
        first: torch.optim.Optimizer = torch.optim.AdamW(
            groups, lr=recipe.generator_rate, weight_decay=WEIGHT_DECAY
        )
    else:
        first = torch.optim.Adam(groups, lr=recipe.generator_rate, betas=ADAM_BETAS)
    set_rate(first, recipe.generator_rate)
    second = torch.optim.Adam(discriminator.parameters(), lr=recipe.discriminator_rate, betas=ADAM_BETAS)
    return first, second


def _groups(generator: nn.Module, pretrained: Collection[str]) -> list[dict[str, Any]]:
    known = [value for name, value in generator.named_parameters() if name in pretrained]
    new = [value for name, value in generator.named_parameters() if name not in pretrained]
    groups = [{"params": new, "share": 1.0}, {"params": known, "share": PRETRAINED_SHARE}]
    return [group for group in groups if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """To each group of parameters its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
