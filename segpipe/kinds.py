"""Every kind of thing that people choose by name: a new one is one file, and one line here.

The command line, the settings and the docs read the names here; a module is imported only when it is used, so
that this costs nothing. The formats of import and export have tables of the same form in segpipe/exchange/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from segpipe.errors import RunError


@dataclass(frozen=True)
class Kind:
    """What people choose it for, in a few words, and the module it is in."""

    summary: str
    module: str


@dataclass(frozen=True)
class Architecture:
    """Both networks of a model: kinds of generator and discriminator.

    one_channel_of_two: two classes are one sigmoid channel, as published; else there are K channels.
    """

    summary: str
    generator: str
    discriminator: str
    one_channel_of_two: bool

    def mask_channels(self, n_classes: int) -> int:
        """Of the generator's logits, and of the masks a discriminator sees."""
        return 1 if self.one_channel_of_two and n_classes == 2 else n_classes


@dataclass(frozen=True)
class Objective:
    """What the generator minimises, and by which recipe it is trained.

    adversarial_weight: None is what the user says. shown_masks: what the discriminator sees, one-hot masks or
    probabilities. recipe: published is the original paper's optimisers, scheduled the project's own.
    """

    summary: str
    pixel_weight: float
    adversarial_weight: float | None
    shown_masks: Literal["hard", "soft"]
    recipe: Literal["published", "scheduled"]


# Each module has build(mask_channels) -> Generator.
GENERATORS = {
    "unet-ibn": Kind(
        "a residual U-Net, half of its first layer in each image's own light",
        "segpipe.models.generators.unet_ibn",
    ),
    "unet": Kind("a residual U-Net", "segpipe.models.generators.unet"),
    "plain": Kind("three 3x3 convolutions", "segpipe.models.generators.plain"),
}
# Each module has build(mask_channels) -> Adversary.
DISCRIMINATORS = {
    "unet": Kind("a small U-Net with spectral norm", "segpipe.models.discriminators.unet"),
    "plain": Kind("three 3x3 convolutions", "segpipe.models.discriminators.plain"),
}
ARCHITECTURES = {
    "unet-ibn": Architecture(
        "sees the whole scene in its own light", "unet-ibn", "unet", one_channel_of_two=False
    ),
    "unet": Architecture("sees it in the training's light", "unet", "unet", one_channel_of_two=False),
    "plain": Architecture("is the published stack", "plain", "plain", one_channel_of_two=True),
}
# Networks that segpipe did not build. Each module has read(url, ...) -> Found and build(files) -> a network.
FOREIGN_GENERATORS = {
    "transformers": Kind("a transformers folder", "segpipe.models.generators.transformers_folder"),
    "onnx": Kind("an .onnx file", "segpipe.models.generators.onnx_file"),
}
# What `adopt` makes a model of: the discriminator is segpipe's own.
ADOPTED_ARCHITECTURES = {
    name: Architecture(kind.summary, name, "unet", one_channel_of_two=False)
    for name, kind in FOREIGN_GENERATORS.items()
}
# Each module has finished_shards, an Engine, and require_installed().
ENGINES = {
    "local": Kind("labels in this process, on one device", "segpipe.labeling.engines.local"),
    "ray": Kind("in workers, on this machine or on a Ray cluster", "segpipe.labeling.engines.ray"),
}
# Each module has LOSS, a GanLoss.
GAN_LOSSES = {
    "bce": Kind("as published, and the steadiest of the four here", "segpipe.training.gan_losses.bce"),
    "lsgan": Kind("least squares", "segpipe.training.gan_losses.lsgan"),
    "hinge": Kind("margins", "segpipe.training.gan_losses.hinge"),
    "wgan-gp": Kind("a critic with gradient penalty", "segpipe.training.gan_losses.wgan_gp"),
}
OBJECTIVES = {
    "hybrid": Objective(
        "adds a small adversarial term to cross-entropy and Dice", 1.0, None, "hard", "scheduled"
    ),
    "adversarial": Objective(
        "is the published recipe, the discriminator alone", 0.0, 1.0, "soft", "published"
    ),
    "supervised": Objective("has no adversarial term", 1.0, 0.0, "hard", "scheduled"),
}


@dataclass(frozen=True)
class OneOf:
    """The names of a table as a type of settings: `Annotated[str, OneOf(GAN_LOSSES)]`."""

    table: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.table))


def described(table: Mapping[str, Any]) -> str:
    """Every name with its summary, for a help text: `unet-ibn sees the whole scene ..., unet ...`."""
    return ", ".join(f"{name} {kind.summary}" for name, kind in table.items())


def module_of(table: Mapping[str, Kind], name: str, what: str) -> Any:
    """The module of a kind, imported. Raises RunError for an unknown name, with those that are known."""
    if name not in table:
        raise RunError(f"there is no {what} {name!r}: take one of {', '.join(table)}")
    return import_module(table[name].module)
