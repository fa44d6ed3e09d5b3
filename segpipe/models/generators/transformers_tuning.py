"""A transformers network that is to be trained on: with a head for other classes, and as files again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from segpipe.models.generators.transformers_folder import (
    HEADS,
    PROCESSOR,
    TransformersNetwork,
    load,
    loaded,
    require_all_weights,
)


def build_to_tune(
    files: Mapping[str, bytes], classes: Sequence[str] | None
) -> tuple[TransformersNetwork, frozenset[str]]:
    """The network of a folder's files, on the CPU, and the names of its parameters that are new.

    classes: of a new classifier in its head; None: it keeps its own. Raises ModelError.
    """
    network, absent = load(files)
    layers = [] if classes is None else _classifiers(network)
    new = {
        f"{layer}.{name}" for layer in layers for name, _ in network.get_submodule(layer).named_parameters()
    }
    require_all_weights(name for name in absent if name not in new)
    if classes is not None:
        for layer in layers:
            network.set_submodule(layer, _anew(network.get_submodule(layer), len(classes)))
        _name_outputs(network, classes)
    return TransformersNetwork(network), frozenset(f"network.{name}" for name in new)


def _classifiers(network: nn.Module) -> list[str]:
    there = {name for name, _ in network.named_modules()}
    return [name for name in HEADS[type(network).__name__].classifiers if name in there]


def _anew(layer: Any, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(layer.in_channels, outputs, layer.kernel_size, bias=layer.bias is not None)


def _name_outputs(network: Any, classes: Sequence[str]) -> None:
    network.config.id2label = dict(enumerate(classes))
    network.config.label2id = {name: index for index, name in enumerate(classes)}


def folder_files(network: TransformersNetwork, processor: bytes) -> dict[str, bytes]:
    """The files of a folder that holds the network as it is now, with its processor's file."""
    still: Any = copy.deepcopy(network.network).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with TemporaryDirectory() as folder:
        still.save_pretrained(folder)
        written = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {PROCESSOR: processor} | {name: written[name] for name in loaded(written)}


def with_all_labels(processor: bytes) -> bytes:
    """A processor's file for a head whose output i is label i, in whatever way the former's were counted."""
    content = json.loads(processor)
    content.pop("reduce_labels", None)
    return json.dumps(content | {"do_reduce_labels": False}, indent=2).encode()
