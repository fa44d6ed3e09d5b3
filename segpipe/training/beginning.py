"""What a training begins with, new networks or a transformers folder, and how its generator is stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from segpipe import storage
from segpipe.config import TrainSettings, working_size
from segpipe.datasets import Dataset
from segpipe.errors import ModelError
from segpipe.inspection.facts import SplitFacts
from segpipe.inspection.objects import ObjectSizes
from segpipe.inspection.scale import Grid
from segpipe.kinds import ARCHITECTURES, OBJECTIVES
from segpipe.models.bundle import (
    ModelSpec,
    build_discriminator,
    build_networks,
    encode_weights,
    foreign_generator,
    stand_still,
)
from segpipe.models.class_map import by_name
from segpipe.models.foreign_check import make_test_vector
from segpipe.models.generators.foreign import ForeignGenerator, Found, build_network
from segpipe.models.generators.protocol import Generator, build_generator
from segpipe.models.generators.transformers_folder import PROCESSOR, TransformersNetwork, read
from segpipe.models.generators.transformers_tuning import build_to_tune, folder_files, with_all_labels
from segpipe.models.judge import Discriminator
from segpipe.tiles import TILE
from segpipe.training.adopt import foreign_kind
from segpipe.training.augmentation import crop_size, view_size
from segpipe.training.probe import (
    digests_of,
    fitting_size,
    fitting_tile,
    foreign_grid,
    foreign_spec,
    probe,
    second_look_of,
)
from segpipe.training.scale import Scale, asked_tile, margin_of, scale_of
from segpipe.training.specs import spec_of
from segpipe.working_size import choose_working_size

logger = logging.getLogger(__name__)
KIND = "transformers"


@dataclass(frozen=True)
class Beginning:
    """Both networks, on the CPU, and what they are.

    pretrained: the generator's parameters, by name, that come trained. processor: the file that says how a
    network of others takes images, None for segpipe's own.
    """

    spec: ModelSpec
    scale: Scale
    generator: Generator
    discriminator: Discriminator
    pretrained: frozenset[str]
    processor: bytes | None


@dataclass(frozen=True)
class Stored:
    """A trained generator as a bundle holds it; weights and files as `save_bundle` takes them."""

    spec: ModelSpec
    weights: bytes
    files: Mapping[str, bytes]


def read_generator(settings: TrainSettings) -> Found | None:
    """What the folder of --generator says, None where there is none. Raises ModelError, StorageError."""
    if settings.generator is None:
        return None
    if foreign_kind(settings.generator) != KIND:
        raise ModelError(
            f"{settings.generator} cannot be trained on: give a transformers folder, or take it as it is "
            "with `segpipe adopt`"
        )
    return read(storage.normalise(settings.generator), {})


def begin(
    settings: TrainSettings,
    found: Found | None,
    dataset: Dataset,
    facts: SplitFacts,
    sizes: ObjectSizes,
) -> Beginning:
    """Networks for the split's images; new weights are drawn with the settings' seed.

    sizes: of the objects in some of the images. Raises ModelError for a folder that cannot be trained on.
    """
    if found is None:
        return _new(settings, dataset, facts, sizes)
    return _from_folder(settings, found, dataset, facts, sizes)


def _new(settings: TrainSettings, dataset: Dataset, facts: SplitFacts, sizes: ObjectSizes) -> Beginning:
    shapes, tile = facts.some_shapes(), asked_tile(settings.tile, TILE)
    asked = settings.image_size
    size = choose_working_size(shapes) if asked is None else working_size(asked)
    networks = ARCHITECTURES[settings.architecture]
    generator = build_generator(networks.generator, networks.mask_channels(len(dataset.classes)))
    grid = Grid(size, tile, margin_of(tile), generator.judged_stride, generator.size_multiple)
    scale = scale_of(settings, sizes, dataset.classes, shapes, grid)
    spec = spec_of(dataset, settings.architecture, _shown_masks(settings), size, scale, None, "half")
    torch.manual_seed(settings.seed)
    return Beginning(spec, scale, *build_networks(spec), frozenset(), None)


def _from_folder(
    settings: TrainSettings, found: Found, dataset: Dataset, facts: SplitFacts, sizes: ObjectSizes
) -> Beginning:
    known, shapes = _known_classes(found, dataset.classes), facts.some_shapes()
    torch.manual_seed(settings.seed)
    network, new = build_to_tune(found.files, dataset.classes if known is None else None)
    size = fitting_size(found, settings.image_size, shapes)
    tile, classes = fitting_tile(found, settings.tile, size), known or dataset.classes
    probed = probe(network, found, size, crop_size(size))
    foreign = foreign_spec(found, probed, classes, by_name(classes, dataset.classes, 0))
    grid = foreign_grid(size, tile, probed.output_stride)
    scale = scale_of(settings, sizes, dataset.classes, shapes, grid)
    second_look = second_look_of(network, {size, tile}, probed.output_stride)
    spec = spec_of(dataset, KIND, _shown_masks(settings), size, scale, foreign, second_look)
    generator = foreign_generator(spec, network)
    processor = found.files[PROCESSOR]
    return Beginning(
        spec,
        scale,
        generator,
        build_discriminator(spec),
        frozenset(name for name, _ in generator.named_parameters()) - {f"network.{name}" for name in new},
        with_all_labels(processor) if known is None else processor,
    )


def _shown_masks(settings: TrainSettings) -> Literal["hard", "soft"]:
    return OBJECTIVES[settings.objective].shown_masks


def _known_classes(found: Found, classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The classes of the network's outputs where they are the data set's, in whatever order."""
    if found.classes is not None and sorted(found.classes) == sorted(classes):
        return found.classes
    logger.info("the network of --generator knows other classes: its last layer begins anew")
    return None


def stored(beginning: Beginning, device: str) -> Stored:
    """The generator as it is now. A network of others is loaded again from its new files, and tried."""
    generator, spec = beginning.generator, beginning.spec
    if beginning.processor is None:
        return Stored(spec, encode_weights(generator), {})
    assert isinstance(generator, ForeignGenerator)
    assert isinstance(generator.network, TransformersNetwork)
    files = folder_files(generator.network, beginning.processor)
    foreign = generator.spec.model_copy(update={"files": digests_of(files)})
    spec = spec.model_copy(update={"foreign": foreign})
    loaded = stand_still(foreign_generator(spec, build_network(spec.architecture, files)), device)
    vector = make_test_vector(loaded, view_size(spec), spec.mean, spec.standard_deviation, device)
    return Stored(spec, vector, files)
