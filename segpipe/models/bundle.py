"""What a trained model is on disk (contract C2): model.json and two safetensors files in one folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from segpipe import storage
from segpipe.confidence.score import UNNAMED_BELIEF, Belief
from segpipe.config import MAX_SCALE, MAX_WORKING_PIXELS
from segpipe.digests import covered, shown
from segpipe.errors import ModelError, NotFoundError, TooLargeError
from segpipe.image_range import ImageRange, checked_range
from segpipe.kinds import ADOPTED_ARCHITECTURES, ARCHITECTURES, Architecture, OneOf
from segpipe.metrics import UNNAMED_RULE, IouRule
from segpipe.models.foreign_check import check_test_vector
from segpipe.models.generators.foreign import ForeignGenerator, ForeignSpec, build_network
from segpipe.models.generators.protocol import Generator, build_generator
from segpipe.models.judge import Discriminator
from segpipe.models.spec_fields import ClassName, Deviation, Digest, Mean
from segpipe.validation import first_problem, parse_json, told_version

BUNDLE_VERSION = 2
MAX_CARD_BYTES = 4_000_000  # a training's settings and metrics are some kilobytes
GENERATOR_FOLDER, TEST_VECTOR = "generator", "test_vector"
SIDE_MULTIPLE, MIN_SIDE = 16, 32  # the networks halve an image up to five times

Network = TypeVar("Network", bound=nn.Module)

SecondLook = Literal["half"]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_WORKING_PIXELS // MIN_SIDE, multiple_of=SIDE_MULTIPLE)]


class ModelSpec(BaseModel):
    """Everything that decides what the networks compute, besides their weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Annotated[str, OneOf(ARCHITECTURES | ADOPTED_ARCHITECTURES)]
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=255)
    ignore_index: int = Field(ge=0, le=255)
    working_size: tuple[Side, Side]
    mean: tuple[Mean, Mean, Mean]
    standard_deviation: tuple[Deviation, Deviation, Deviation]
    shown_masks: Literal["hard", "soft"] | None
    """Which masks the game of stage 1 was played with: one-hot, or the generator's probabilities; None: there
    was no game, only a generator that segpipe did not train."""
    foreign: ForeignSpec | None = None
    """Of a generator that segpipe did not build; its files lie under generator/."""
    scale: float | None = Field(None, ge=1, le=MAX_SCALE, allow_inf_nan=False)
    """Image pixels per network pixel (contract C11); None: the whole image is fitted to the working size, at
    which the judge looks at it as a whole in any case."""
    tile: tuple[Side, Side] | None = None
    """Height and width, in network pixels, of one pass of the networks over an image at its scale."""
    margin: int | None = Field(None, ge=0)
    """Network pixels along a tile's inner edges that are decided by its neighbours."""
    image_range: ImageRange | None = None
    """The values of images, as stored, that become 0 and 255 before anything else; None: each file's full
    range."""
    iou_rule: IouRule | None = None
    """Of the IoU that the score stands for; None: every_class, of a bundle from before there was a choice."""
    second_look: SecondLook | None = None
    """How the generator sees each image once more, for the score alone: at half its sides, mirrored; None:
    not at all, of a bundle from before, or of a network that does not take half its sizes."""
    belief_kind: Belief | None = None
    """How the score takes the generator's probabilities; None: softened, of a bundle from before there was a
    choice."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name is there twice")
        if self.ignore_index < len(self.classes):
            raise ValueError(f"ignore_index: {self.ignore_index} is a class")
        if math.prod(self.working_size) > MAX_WORKING_PIXELS:
            raise ValueError(f"working_size: over {MAX_WORKING_PIXELS} pixels")
        if (self.foreign is None) != (self.architecture in ARCHITECTURES):
            raise ValueError("foreign: goes with the architectures of adopted generators")
        if self.foreign is not None:
            _check_class_map(self.foreign, len(self.classes))
        _check_tiles(self.scale, self.tile, self.margin)
        if self.image_range is not None:
            checked_range(self.image_range)
        return self

    @property
    def rule(self) -> IouRule:
        """What an image's IoU is to this model."""
        return self.iou_rule or UNNAMED_RULE

    @property
    def belief(self) -> Belief:
        """How the score takes the generator's probabilities."""
        return self.belief_kind or UNNAMED_BELIEF

    @property
    def mask_channels(self) -> int:
        return self.networks.mask_channels(len(self.classes))

    @property
    def networks(self) -> Architecture:
        return (ARCHITECTURES | ADOPTED_ARCHITECTURES)[self.architecture]


def _check_class_map(foreign: ForeignSpec, n_classes: int) -> None:
    if len(foreign.class_map) != len(foreign.classes):
        raise ValueError("foreign: class_map has another length than its classes")
    if any(target is not None and target >= n_classes for target in foreign.class_map):
        raise ValueError("foreign: class_map names a class that is none")


def _check_tiles(scale: float | None, tile: tuple[int, int] | None, margin: int | None) -> None:
    if len({value is None for value in (scale, tile, margin)}) > 1:
        raise ValueError("scale, tile and margin: go together")
    if tile is None or margin is None:
        return
    if math.prod(tile) > MAX_WORKING_PIXELS:
        raise ValueError(f"tile: over {MAX_WORKING_PIXELS} pixels")
    if 2 * margin > min(tile) - SIDE_MULTIPLE:
        raise ValueError("margin: leaves nothing of a tile")


def has_one_size(spec: ModelSpec) -> bool:
    """Whether the generator takes images of the working size only."""
    return spec.foreign is not None and spec.foreign.one_size


class ModelCard(BaseModel):
    """model.json: the spec, and where the model comes from.

    `digest` is the model's identity (see model_digest) and `model_id` its first 12 digits, for people and
    paths; None in a bundle of a version that did not store it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_version: Literal[2] = 2
    model_id: str
    digest: Digest | None = None
    spec: ModelSpec
    training_data: dict[str, str]
    training_settings: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created_at: str


@dataclass(frozen=True)
class Bundle:
    """A trained model in memory, in evaluation mode."""

    card: ModelCard
    generator: Generator
    discriminator: Discriminator

    @property
    def model_id(self) -> str:
        return self.card.model_id

    @property
    def digest(self) -> str | None:
        """64 hex digits; of a loaded bundle always there and always that of its content."""
        return self.card.digest

    @property
    def spec(self) -> ModelSpec:
        return self.card.spec


def encode_weights(network: nn.Module) -> bytes:
    """The network's state as safetensors bytes; the same weights always give the same bytes.

    Raises ModelError for weights that are no numbers: `load_bundle` would refuse them.
    """
    state = network.state_dict()
    if (name := without_numbers(state)) is not None:
        raise ModelError(f"weights that are no numbers (in {name}) are not saved: train again")
    return save_tensors({name: tensor.cpu().contiguous() for name, tensor in state.items()})


def without_numbers(state: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with values that are no numbers."""
    return next((name for name, tensor in state.items() if not tensor.isfinite().all()), None)


def model_digest(spec: ModelSpec, generator: bytes, discriminator: bytes) -> str:
    """The SHA-256, in hex, of both weight files and the spec: what a model is. model_id: its first 12.

    Of a foreign generator `generator` is the test vector; the spec holds the digests of its files.
    """
    digest = hashlib.sha256()
    for part in (generator, discriminator, spec_json(spec)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def spec_json(spec: ModelSpec) -> bytes:
    """The spec as its digest sees it: in the order of its fields, without those that are absent."""
    optional = {name for name, field in type(spec).model_fields.items() if not field.is_required()}
    return spec.model_dump_json(include=set(covered(dict(spec), optional))).encode()


def build_networks(spec: ModelSpec) -> tuple[Generator, Discriminator]:
    """New, untrained networks of a spec whose generator is of segpipe's own kinds."""
    generator = build_generator(spec.networks.generator, spec.mask_channels)
    return generator, build_discriminator(spec)


def build_discriminator(spec: ModelSpec) -> Discriminator:
    """A new, untrained discriminator; without an adversary where the spec knows of no game."""
    kind, has_played = spec.networks.discriminator, spec.shown_masks is not None
    return Discriminator(kind, spec.mask_channels, len(spec.classes), has_played=has_played)


def save_bundle(
    url: str,
    card: ModelCard,
    generator: bytes,
    discriminator: bytes,
    foreign_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a bundle, weights first and model.json last: a folder with model.json is complete.

    generator: its weights; of a foreign one, the test vector, and foreign_files are its own.
    """
    for name, content in (foreign_files or {}).items():
        storage.put(storage.join(url, f"{GENERATOR_FOLDER}/{name}"), content)
    first = "generator" if card.spec.foreign is None else TEST_VECTOR
    storage.put(storage.join(url, f"{first}.safetensors"), generator)
    storage.put(storage.join(url, "discriminator.safetensors"), discriminator)
    storage.put(storage.join(url, "model.json"), card.model_dump_json(indent=2).encode())


def read_card(url: str) -> ModelCard:
    """The model.json of a bundle. Raises ModelError: missing, damaged or of another version."""
    uri = storage.join(storage.normalise(url), "model.json")
    try:
        content = storage.read(uri, MAX_CARD_BYTES).data
    except NotFoundError as error:
        raise ModelError(f"no model at {url}: {uri} is not there; train one with `segpipe train`") from error
    except TooLargeError as error:
        raise ModelError(_damaged(url, f"over {MAX_CARD_BYTES} bytes")) from error
    return _parse_card(url, content)


def _parse_card(url: str, content: bytes) -> ModelCard:
    try:
        version = parse_json(content).get("bundle_version")
        if version != BUNDLE_VERSION:
            raise ModelError(
                f"model at {url} has bundle version {told_version(version)}, not {BUNDLE_VERSION}: retrain it"
            )
        return ModelCard.model_validate_json(content)
    except ValidationError as error:
        raise ModelError(_damaged(url, first_problem(error))) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(_damaged(url, "it is no JSON object that can be read")) from error


def _damaged(url: str, what: str) -> str:
    return f"model at {url} has a damaged model.json ({what}): copy the bundle again or retrain"


def load_bundle(url: str, device: str) -> Bundle:
    """Load a bundle onto a torch device. Raises ModelError: missing, damaged, or weights that do not fit."""
    root = storage.normalise(url)
    card = read_card(root)
    first = "generator" if card.spec.foreign is None else TEST_VECTOR
    weights = [_read_weights(root, name) for name in (first, "discriminator")]
    card = _verified(card, model_digest(card.spec, *weights), url)
    discriminator = build_discriminator(card.spec)
    _fill(discriminator, weights[1], url)
    return Bundle(
        card,
        _load_generator(card.spec, weights[0], root, device),
        stand_still(discriminator, device),
    )


def _load_generator(spec: ModelSpec, content: bytes, root: str, device: str) -> Generator:
    """content: its weights; of a foreign one, the test vector."""
    if spec.foreign is None:
        generator = build_generator(spec.networks.generator, spec.mask_channels)
        _fill(generator, content, root)
        return stand_still(generator, device)
    files = _foreign_files(spec.foreign, root)
    try:
        foreign = stand_still(foreign_generator(spec, build_network(spec.networks.generator, files)), device)
        check_test_vector(foreign, content, spec.mean, spec.standard_deviation, device)
    except ModelError as error:
        raise ModelError(f"model at {root}: {error}") from error
    return foreign


def foreign_generator(spec: ModelSpec, network: nn.Module) -> ForeignGenerator:
    """The generator of a spec that names a foreign one, of the network itself."""
    assert spec.foreign is not None
    return ForeignGenerator(network, spec.foreign, (spec.mean, spec.standard_deviation), len(spec.classes))


def stand_still(network: Network, device: str) -> Network:
    """The network on a device, in evaluation mode, not to be trained."""
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def _foreign_files(foreign: ForeignSpec, root: str) -> dict[str, bytes]:
    """The files of a bundle's generator, which must be those that the spec names."""
    files = {name: _read_whole(root, f"{GENERATOR_FOLDER}/{name}") for name in foreign.files}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != foreign.files[name]:
            raise ModelError(
                f"model at {root} has another {GENERATOR_FOLDER}/{name} than it was made with: copy the "
                "bundle again"
            )
    return files


def _verified(card: ModelCard, digest: str, url: str) -> ModelCard:
    """The card with the digest of the bundle's content, which it must name."""
    if shown(digest) != card.model_id or card.digest not in (None, digest):
        raise ModelError(
            f"model at {url} is not {card.model_id}: its files were changed; copy the bundle again"
        )
    return card.model_copy(update={"digest": digest})


def _read_weights(root: str, name: str) -> bytes:
    return _read_whole(root, f"{name}.safetensors")


def _read_whole(root: str, name: str) -> bytes:
    uri = storage.join(root, name)
    try:
        return storage.read_bytes(uri)
    except NotFoundError as error:
        raise ModelError(
            f"model at {root} is incomplete: {uri} is not there; copy the bundle again"
        ) from error


def _fill(network: nn.Module, content: bytes, url: str) -> None:
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
        network.load_state_dict(tensors)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ModelError(f"model at {url} has weights that do not fit its model.json: retrain it") from error
    if (name := without_numbers(network.state_dict())) is not None:
        raise ModelError(f"model at {url} has weights that are no numbers (in {name}): retrain it")
