"""What a trained model is on disk (contract C2): model.json and two safetensors files in one folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from segpipe import storage
from segpipe.digests import covered, shown
from segpipe.errors import ModelError, NotFoundError
from segpipe.models.generator import Generator, build_generator
from segpipe.models.judge import Discriminator
from segpipe.models.masks import channel_count

BUNDLE_VERSION = 2


class ModelSpec(BaseModel):
    """Everything that decides what the networks compute, besides their weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["unet", "plain"]
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    ignore_index: int = Field(ge=0, le=255)
    working_size: tuple[int, int]
    mean: tuple[float, float, float]
    standard_deviation: tuple[float, float, float]
    shown_masks: Literal["hard", "soft"]
    """Which masks the game of stage 1 was played with: one-hot, or the generator's probabilities."""

    @property
    def mask_channels(self) -> int:
        return channel_count(self.architecture, len(self.classes))


class ModelCard(BaseModel):
    """model.json: the spec, and where the model comes from.

    `digest` is the model's identity (see model_digest) and `model_id` its first 12 digits, for people and
    paths; None in a bundle of a version that did not store it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_version: Literal[2] = 2
    model_id: str
    digest: str | None = None
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
    """The network's state as safetensors bytes; the same weights always give the same bytes."""
    return save_tensors({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()})


def model_digest(spec: ModelSpec, generator: bytes, discriminator: bytes) -> str:
    """The SHA-256, in hex, of both weight files and the spec: what a model is. model_id: its first 12."""
    digest = hashlib.sha256()
    for part in (generator, discriminator, spec_json(spec)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def spec_json(spec: ModelSpec) -> bytes:
    """The spec as its digest sees it: in the order of its fields, without those that are absent."""
    optional = {name for name, field in type(spec).model_fields.items() if not field.is_required()}
    return spec.model_dump_json(include=set(covered(dict(spec), optional))).encode()


def build_networks(
    spec: ModelSpec,
) -> tuple[Generator, Discriminator]:
    """New, untrained networks of a spec."""
    return (
        build_generator(spec.architecture, spec.mask_channels),
        Discriminator(spec.architecture, spec.mask_channels, len(spec.classes)),
    )


def save_bundle(url: str, card: ModelCard, generator: bytes, discriminator: bytes) -> None:
    """Write a bundle, weights first and model.json last: a folder with model.json is complete."""
    storage.put(storage.join(url, "generator.safetensors"), generator)
    storage.put(storage.join(url, "discriminator.safetensors"), discriminator)
    storage.put(storage.join(url, "model.json"), card.model_dump_json(indent=2).encode())


def read_card(url: str) -> ModelCard:
    """The model.json of a bundle. Raises ModelError: missing, damaged or of another version."""
    uri = storage.join(storage.normalise(url), "model.json")
    try:
        content = storage.read_bytes(uri)
    except NotFoundError as error:
        raise ModelError(f"no model at {url}: {uri} is not there; train one with `segpipe train`") from error
    return _parse_card(url, content)


def _parse_card(url: str, content: bytes) -> ModelCard:
    try:
        version = json.loads(content).get("bundle_version")
        if version != BUNDLE_VERSION:
            raise ModelError(f"model at {url} has bundle version {version}, not {BUNDLE_VERSION}: retrain it")
        return ModelCard.model_validate_json(content)
    except (ValidationError, ValueError, AttributeError) as error:
        raise ModelError(
            f"model at {url} has a damaged model.json: copy the bundle again or retrain"
        ) from error


def load_bundle(url: str, device: str) -> Bundle:
    """Load a bundle onto a torch device. Raises ModelError: missing, damaged, or weights that do not fit."""
    root = storage.normalise(url)
    card = read_card(root)
    weights = [_read_weights(root, name) for name in ("generator", "discriminator")]
    card = _verified(card, model_digest(card.spec, *weights), url)
    generator, discriminator = build_networks(card.spec)
    for network, content in zip((generator, discriminator), weights, strict=True):
        _fill(network, content, url)
        network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return Bundle(card, generator, discriminator)


def _verified(card: ModelCard, digest: str, url: str) -> ModelCard:
    """The card with the digest of the bundle's content, which it must name."""
    if shown(digest) != card.model_id or card.digest not in (None, digest):
        raise ModelError(
            f"model at {url} is not {card.model_id}: its files were changed; copy the bundle again"
        )
    return card.model_copy(update={"digest": digest})


def _read_weights(root: str, name: str) -> bytes:
    uri = storage.join(root, f"{name}.safetensors")
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
