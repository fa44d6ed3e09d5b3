"""Which device computes, and in which precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from segpipe.confidence.policy import DeviceKind, Precision
from segpipe.errors import DeviceError, DeviceMemoryError, ModelError

Result = TypeVar("Result")
# More at once bring a GPU next to nothing.
MOST_IMAGES = 64
# Peak of both networks, measured on a CPU at 820 bytes a pixel and 20 more for each class; and as much again
# for what a GPU's libraries take.
BYTES_PER_PIXEL, BYTES_PER_CLASS = 1600, 40
# In the libraries' words, since only torch's own allocator raises a type for it.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|memory allocation failure|CUFFT_ALLOC_FAILED|miopenStatusAllocFailed"
    r"|_STATUS_(INTERNAL_ERROR_(HOST|DEVICE)_)?ALLOC(ATION)?_FAILED"
    r"|[Uu]nable to find an engine to execute this computation"
)
_BROKEN = re.compile(
    r"(CUDA|HIP) error|cudaError|device-side assert"
    r"|(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|HIPBLAS)_STATUS_|miopenStatus"
)


def choose_device(name: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` to a torch device name. Raises ModelError: asked for, not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind_of(name) == "cuda":
        _require_cuda(torch.device(name).index or 0)
    return name


def _require_cuda(index: int) -> None:
    if not torch.cuda.is_available():
        raise ModelError("no CUDA device here: use --device cpu or auto, or install a CUDA build of torch")
    there = torch.cuda.device_count()
    if index >= there:
        raise ModelError(f"no CUDA device {index} here, {there} in all: use --device cuda:0 to {there - 1}")


def kind_of(device: str) -> DeviceKind:
    """`cpu` or `cuda`, whichever of several it is."""
    return cast(DeviceKind, torch.device(device).type)


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is native on the device; emulated it is slower than float32."""
    if kind_of(device) == "cuda":
        with as_current(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def precision_of(device: str) -> Precision:
    """The precision that the networks' convolutions have on the device."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def autocast(device: str) -> AbstractContextManager[object]:
    """Mixed precision where the device has bfloat16; float32 elsewhere."""
    return torch.autocast(kind_of(device), dtype=torch.bfloat16, enabled=has_bfloat16(device))


def as_current(device: str) -> AbstractContextManager[object]:
    """Of several GPUs the one that this thread means where it names none, as for pinned memory."""
    return nullcontext() if torch.device(device).index is None else torch.cuda.device(device)


def stack_to_device(images: Sequence[np.ndarray], device: str) -> Tensor:
    """Images (h,w,3) uint8 of one size as one tensor on the device, by one copy there."""
    if device == "cpu":
        return torch.from_numpy(np.stack(images))
    shape = (len(images), *images[0].shape)
    host = torch.empty(shape, dtype=torch.uint8, pin_memory=kind_of(device) == "cuda")
    np.stack(images, out=host.numpy())
    return host.to(device, non_blocking=True)


def fetch_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device in main memory, by one copy: a GPU is waited for once."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    return unpacked(_to_host(packed(tensors)), tensors)


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors' bytes as one tensor (n,) uint8, the widest types first so that each lies where it may."""
    return torch.cat(
        [tensors[index].contiguous().flatten().view(torch.uint8) for index in _widest_first(tensors)]
    )


def unpacked(content: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the shapes and types of others from what `packed` made of those; they share its memory."""
    order = _widest_first(like)
    pieces = content.split([like[index].nbytes for index in order])
    found = dict(zip(order, pieces, strict=True))
    return [found[index].view(tensor.dtype).view(tensor.shape) for index, tensor in enumerate(like)]


def _widest_first(tensors: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda index: -tensors[index].dtype.itemsize)


def _to_host(content: Tensor) -> Tensor:
    host = torch.empty(content.shape, dtype=content.dtype, pin_memory=content.is_cuda)
    host.copy_(content, non_blocking=True)
    if content.is_cuda:
        copied = torch.cuda.Event(blocking=True)  # its thread sleeps, and leaves its core to the decoders
        copied.record(torch.cuda.current_stream(content.device))
        copied.synchronize()
    return host


def images_at_once(free_bytes: int, pixels: int, n_classes: int) -> int:
    """How many images of so many pixels the default networks label at once in half of a device's free memory.

    Another generator may take more: then the batch is halved.
    """
    bytes_each = pixels * (BYTES_PER_PIXEL + BYTES_PER_CLASS * n_classes)
    return max(1, min(MOST_IMAGES, free_bytes // 2 // bytes_each))


def free_memory(device: str) -> int:
    """Bytes of a GPU's memory that nobody has taken."""
    return torch.cuda.mem_get_info(device)[0]


def wait_for(device: str) -> None:
    """Until all that was given to the device so far is done."""
    if kind_of(device) == "cuda":
        torch.cuda.synchronize(device)


def own_stream(device: str) -> None:
    """Let what this thread computes, and copies, not wait for that of others on the same GPU."""
    if kind_of(device) == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def on_device(device: str, what: str, work: Callable[[], Result]) -> Result:
    """What the work on the device gives.

    Raises DeviceMemoryError when there is no memory for `what`, DeviceError when the device has failed: after
    a CUDA error nothing that follows in the process can be believed. Other errors pass.
    """
    try:
        with as_current(device):
            return work()
    except RuntimeError as error:
        _raise_if_broken(error, device)
        if not is_out_of_memory(error):
            raise
    # Outside the handler, which would keep the failed work's tensors alive.
    _free_memory(device)
    raise DeviceMemoryError(f"the {device} device has no memory for {what}")


def _raise_if_broken(error: RuntimeError, device: str) -> None:
    if is_broken(error):
        said = str(error).partition("\n")[0]
        raise DeviceError(
            f"the {device} device has failed ({said}): what is labelled is kept; start again in a new "
            "process, and if it fails again look at the driver's log (dmesg, nvidia-smi) or use --device cpu"
        ) from error


def _free_memory(device: str) -> None:
    if device == "cpu":
        return
    try:
        with as_current(device):
            torch.cuda.empty_cache()
    except RuntimeError as error:
        _raise_if_broken(error, device)
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or a library below it, found no memory on its device."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_NO_MEMORY.search(str(error)))


def is_broken(error: RuntimeError) -> bool:
    """Whether the device itself reports an error other than that its memory is full."""
    reported = isinstance(error, torch.AcceleratorError) or bool(_BROKEN.search(str(error)))
    return reported and not is_out_of_memory(error)
