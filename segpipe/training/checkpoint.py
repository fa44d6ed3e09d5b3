"""A stopped training on disk: one safetensors object, put whole after each epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from segpipe import storage
from segpipe.errors import NotFoundError, RunError

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of tensors, and plain data (epoch, settings, history) that goes through JSON."""

    tensors: dict[str, dict[str, Tensor]]
    data: dict[str, Any]


def save_checkpoint(model_url: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in the model's folder."""
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, tensors in checkpoint.tensors.items()
        for name, tensor in tensors.items()
    }
    content = save_tensors(flat, metadata={"segpipe": json.dumps(checkpoint.data)})
    storage.put(storage.join(model_url, FILE), content)


def load_checkpoint(model_url: str) -> Checkpoint | None:
    """The checkpoint in the model's folder, None when there is none. Raises RunError: damaged."""
    uri = storage.join(model_url, FILE)
    try:
        content = storage.read_bytes(uri)
    except NotFoundError:
        return None
    try:
        return Checkpoint(_group(load_tensors(content)), json.loads(_metadata(content)["segpipe"]))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"checkpoint {uri} is damaged: delete it and train again") from error


def delete_checkpoint(model_url: str) -> None:
    """Remove the checkpoint of a finished training."""
    storage.delete(storage.join(model_url, FILE))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An Adam-like optimiser's state as named tensors, `<parameter>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; step sizes and the like stay the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _group(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def _metadata(content: bytes) -> dict[str, str]:
    # The format: 8 bytes of little-endian header length, then a JSON header with the metadata.
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]
