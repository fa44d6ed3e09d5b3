"""`segpipe adopt`: from a network that was trained elsewhere to a model bundle. Only the judge learns."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from segpipe import storage
from segpipe.config import AdoptSettings, three_numbers
from segpipe.datasets import Dataset, fingerprint, open_dataset
from segpipe.digests import shown
from segpipe.errors import ModelError, RunError
from segpipe.inspection.checks import copies, require_usable, say, warnings_of
from segpipe.inspection.facts import SplitFacts
from segpipe.inspection.object_sample import look_at_objects
from segpipe.inspection.objects import ObjectSizes
from segpipe.kinds import FOREIGN_GENERATORS, module_of
from segpipe.metrics import SegmentationMetrics
from segpipe.models.bundle import (
    ModelCard,
    ModelSpec,
    build_discriminator,
    encode_weights,
    foreign_generator,
    model_digest,
    save_bundle,
    stand_still,
)
from segpipe.models.class_map import by_file, by_name, read_class_map
from segpipe.models.device import choose_device
from segpipe.models.foreign_check import make_test_vector
from segpipe.models.generators.foreign import ForeignGenerator, Found, build_network
from segpipe.models.judge import Discriminator
from segpipe.training.augmentation import crop_size, view_size
from segpipe.training.checkpoint import FILE as CHECKPOINT
from segpipe.training.history import RoundRecord, history_csv
from segpipe.training.holdout import Parts, unseen_parts
from segpipe.training.judge_loop import VIEWS_SHARE, Scoring, Teachers
from segpipe.training.labelled_pixels import LabelledPixels, load_samples
from segpipe.training.learning_groups import learning_groups
from segpipe.training.learnt_images import keep_seen
from segpipe.training.probe import (
    Probed,
    fitting_size,
    fitting_tile,
    foreign_grid,
    foreign_spec,
    probe,
    second_look_of,
)
from segpipe.training.processes import require_one_process
from segpipe.training.provenance import score_combination, versions
from segpipe.training.recipe import VIEWS
from segpipe.training.sanity import doubts, require_sense
from segpipe.training.scale import Scale, scale_of
from segpipe.training.specs import spec_of

logger = logging.getLogger(__name__)
# What can run code as it is loaded, or says nothing that could be checked.
REFUSED = (".pt2", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".h5", ".safetensors")
FOR_ONNX = ("output", "channel_order", "range", "mean", "deviation")


@dataclass(frozen=True)
class AdoptResult:
    """Where the model is, how good the network's masks are on the split (0 to 1), what is odd about it."""

    model: str
    model_id: str
    images: int
    mean_iou: float
    pixel_accuracy: float
    seconds: float
    warnings: tuple[str, ...] = ()


def adopt(settings: AdoptSettings) -> AdoptResult:
    """Teach a judge the network's masks and write the bundle.

    Raises ModelError (a network that cannot be adopted, or makes no sense of the images), DatasetError (also
    for what inspection.checks refuses), RunError (a model is there already, or torchrun started several
    processes), StorageError.
    """
    started = time.monotonic()
    require_one_process("adopt")
    model_url = storage.normalise(settings.model)
    _require_free(model_url)
    kind = foreign_kind(settings.path)
    found = module_of(FOREIGN_GENERATORS, kind, "foreign generator").read(
        storage.normalise(settings.path), _given(settings)
    )
    dataset = open_dataset(settings.data)
    facts, sizes = look_at_objects(dataset, settings.split)
    warnings = list(say(_checked(facts, settings)))
    groups = learning_groups(facts, settings.group_by)
    network = build_network(kind, found.files)
    spec, scale = _make_spec(settings, kind, found, network, dataset, facts, sizes)
    logger.info("scale: %s", scale.line)
    warnings += say([*scale.warnings, *_unmapped(spec)])
    device = choose_device(settings.device)
    generator = stand_still(foreign_generator(spec, network), device)
    torch.manual_seed(settings.seed)
    discriminator = build_discriminator(spec).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with load_samples(dataset, facts.usable, spec, settings.cache_bytes) as labelled:
        quality = require_sense(generator, labelled, spec, device)
        warnings += say(doubts(generator, labelled, spec, device))
        parts = unseen_parts(len(labelled), groups)
        rounds = _teach(settings, spec, generator, discriminator, labelled, parts, device)
    keep_seen(model_url, set(facts.digests))
    card = _save(settings, spec, dataset, quality, (generator, discriminator), found, rounds)
    return AdoptResult(
        model_url,
        card.model_id,
        len(facts.usable),
        quality.mean_iou,
        quality.pixel_accuracy,
        time.monotonic() - started,
        tuple(warnings),
    )


def _require_free(model_url: str) -> None:
    for name, what in (("model.json", "a finished model"), (CHECKPOINT, "an unfinished training")):
        if storage.exists(storage.join(model_url, name)):
            raise RunError(f"{model_url} holds {what}: adopt into another folder")


def foreign_kind(path: str) -> str:
    """The kind of what lies there, by its name. Raises ModelError for files that segpipe never loads."""
    name = path.rstrip("/").lower()
    if name.endswith(".onnx"):
        return "onnx"
    if name.endswith(REFUSED):
        raise ModelError(
            f"{path} is no transformers folder and no .onnx file: segpipe loads neither pickles nor exported "
            "programs, which can run code; give the folder that save_pretrained writes, or export to ONNX"
        )
    return "transformers"


def _given(settings: AdoptSettings) -> dict[str, Any]:
    """The options on an .onnx file that were given."""
    given = settings.model_dump(include=set(FOR_ONNX), exclude_none=True)
    return {
        name: three_numbers(value) if name in ("mean", "deviation") else value
        for name, value in given.items()
    }


def _checked(facts: SplitFacts, settings: AdoptSettings) -> list[str]:
    repeated = [line] if (line := copies(facts)) else []
    return [*require_usable(facts, settings.allow), *repeated, *warnings_of(facts)]


def _make_spec(
    settings: AdoptSettings,
    kind: str,
    found: Found,
    network: nn.Module,
    dataset: Dataset,
    facts: SplitFacts,
    sizes: ObjectSizes,
) -> tuple[ModelSpec, Scale]:
    size = fitting_size(found, settings.image_size, facts.some_shapes())
    tile = fitting_tile(found, settings.tile, size)
    probed = probe(network, found, tile, crop_size(tile))
    classes = _foreign_classes(found, probed)
    grid = foreign_grid(size, tile, probed.output_stride)
    scale = scale_of(settings, sizes, dataset.classes, facts.some_shapes(), grid)
    foreign = foreign_spec(found, probed, classes, _class_map(settings, found, classes, dataset.classes))
    second_look = second_look_of(network, {size, tile}, probed.output_stride)
    spec = spec_of(dataset, kind, None, size, scale, foreign, second_look)
    return spec, scale


def _foreign_classes(found: Found, probed: Probed) -> tuple[str, ...]:
    count = max(2, probed.channels)
    if found.classes is None:
        return tuple(str(index) for index in range(count))
    if len(found.classes) != count:
        raise ModelError(
            f"the network gives {count} classes and names {len(found.classes)}: correct its names"
        )
    return found.classes


def _class_map(
    settings: AdoptSettings, found: Found, foreign: tuple[str, ...], classes: tuple[str, ...]
) -> tuple[int | None, ...]:
    if settings.class_map is None:
        return by_name(foreign, classes, found.first_class)
    url = storage.normalise(settings.class_map)
    return by_file(read_class_map(url), url, foreign, classes)


def _unmapped(spec: ModelSpec) -> list[str]:
    assert spec.foreign is not None
    return [
        f"no class of the network is {name!r}: its masks never show it"
        for index, name in enumerate(spec.classes)
        if index not in spec.foreign.class_map
    ]


def _teach(
    settings: AdoptSettings,
    spec: ModelSpec,
    generator: ForeignGenerator,
    discriminator: Discriminator,
    labelled: LabelledPixels,
    parts: Parts,
    device: str,
) -> list[RoundRecord]:
    views = VIEWS * VIEWS_SHARE if settings.epochs is None else settings.epochs * len(labelled)
    scoring = Scoring.begin(
        settings.seed,
        spec,
        Teachers(generator, []),
        discriminator.judge,
        labelled,
        parts,
        views,
        device,
    )
    scoring.run(lambda: None)
    return scoring.history


def _save(
    settings: AdoptSettings,
    spec: ModelSpec,
    dataset: Dataset,
    quality: SegmentationMetrics,
    networks: tuple[ForeignGenerator, Discriminator],
    found: Found,
    rounds: list[RoundRecord],
) -> ModelCard:
    generator, discriminator = networks
    model_url, device = storage.normalise(settings.model), str(generator.factor.device)
    vector = make_test_vector(generator, view_size(spec), spec.mean, spec.standard_deviation, device)
    weights = encode_weights(discriminator)
    digest = model_digest(spec, vector, weights)
    card = ModelCard(
        model_id=shown(digest),
        digest=digest,
        spec=spec,
        training_data=_training_data(settings, dataset),
        training_settings=settings.model_dump(mode="json", exclude={"data", "model", "path", "class_map"}),
        metrics={
            "split": settings.split,
            "mean_iou": quality.mean_iou,
            "pixel_accuracy": quality.pixel_accuracy,
            "score_combination": score_combination(discriminator.judge),
        },
        versions=versions(spec.architecture),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.put(storage.join(model_url, "judging.csv"), history_csv(rounds))
    save_bundle(model_url, card, vector, weights, found.files)
    return card


def _training_data(settings: AdoptSettings, dataset: Dataset) -> dict[str, str]:
    return {
        "name": dataset.name,
        "split": settings.split,
        "fingerprint": fingerprint(dataset, settings.split),
    }
