"""Which device computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from segpipe.errors import ModelError


def choose_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` to a torch device name. Raises ModelError: cuda asked for, none there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("no CUDA device here: use --device cpu or auto, or install a CUDA build of torch")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is native on the device; emulated it is slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def autocast(device: str) -> AbstractContextManager[object]:
    """Mixed precision where the device has bfloat16; float32 elsewhere."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def to_device(array: np.ndarray, device: str) -> Tensor:
    """The array as a tensor on the device; the copy to a GPU goes on while the caller does other work."""
    tensor = torch.from_numpy(array)
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory on its device: on the CPU it says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
