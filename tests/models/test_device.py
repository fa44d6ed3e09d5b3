"""What a device says when it fails, here a faked one: full memory is met, a broken device ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_model import write_random_model

from segpipe.errors import DeviceError, DeviceMemoryError, ModelError
from segpipe.models import device, labeler
from segpipe.models.labeler import Labeler, load_model

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA out of memory."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul(...)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
]
BROKEN = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore lines"),
    torch.AcceleratorError("no words that are known"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP error: unspecified launch failure"),
]
PLACES = ["stack_to_device", "predict", "full_size_mask"]


def raising(error: Exception) -> Callable[..., object]:
    def work(*arguments: object) -> object:
        raise error

    return work


@pytest.mark.parametrize("error", FULL, ids=str)
def test_full_memory_is_told_whoever_finds_it(error: RuntimeError) -> None:
    with pytest.raises(DeviceMemoryError, match=r"^the cpu device has no memory for 8 images at once$"):
        device.on_device("cpu", "8 images at once", raising(error))


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_broken_device_is_one_line_with_a_remedy(error: RuntimeError) -> None:
    first = str(error).splitlines()[0]
    with pytest.raises(DeviceError) as raised:
        device.on_device("cuda", "8 images at once", raising(error))
    assert str(raised.value).startswith(f"the cuda device has failed ({first}): ")
    assert "start again in a new process" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("CUDA error"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)):
        device.on_device("cpu", "work", raising(error))


def test_a_device_that_breaks_as_its_memory_is_freed_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", raising(BROKEN[0]))
    with pytest.raises(DeviceError):
        device.on_device("cuda", "work", raising(FULL[0]))


def test_what_failed_is_freed_before_the_memory_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else halving the batch would not help: the whole one would still be there."""
    alive: list[object] = []

    class Tensor:
        def __del__(self) -> None:
            alive.remove("tensor")

    def work() -> None:
        alive.append("tensor")
        tensor = Tensor()
        raise torch.OutOfMemoryError(f"no memory beside {type(tensor)}")

    freed: list[list[object]] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(list(alive)))
    with pytest.raises(DeviceMemoryError):
        device.on_device("cuda", "work", work)
    assert freed == [[]]


@pytest.mark.parametrize(
    ("asked", "there", "chosen"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_one_of_several_gpus_can_be_asked_for(
    asked: str, there: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert device.choose_device(asked) == chosen


@pytest.mark.parametrize(
    ("asked", "there", "line"),
    [
        ("cuda:1", 0, "no CUDA device here: use --device cpu or auto, or install a CUDA build of torch"),
        ("cuda:2", 2, "no CUDA device 2 here, 2 in all: use --device cuda:0 to 1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    asked: str, there: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ModelError, match=f"^{line}$"):
        device.choose_device(asked)


# --- the labeler --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Labeler:
    return load_model(write_random_model(str(tmp_path_factory.mktemp("model"))), "cpu")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.mark.parametrize("place", PLACES)
def test_a_device_that_breaks_anywhere_is_said_to_be_broken(
    tiny: Labeler, image: np.ndarray, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeler, place, raising(BROKEN[0]))
    with pytest.raises(DeviceError):
        tiny.label([image])


@pytest.mark.parametrize("place", PLACES[:2])
def test_a_batch_for_which_there_is_no_memory_is_said_to_be_that(
    tiny: Labeler, image: np.ndarray, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeler, place, raising(FULL[0]))
    with pytest.raises(DeviceMemoryError, match="2 images at once"):
        tiny.judge([tiny.prepare(image)] * 2)


def test_a_mask_for_which_the_device_has_no_memory_is_made_on_the_cpu(
    tiny: Labeler, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (expected,) = tiny.label([image])
    made, places = labeler.full_size_mask, []

    def full_at_first(logits: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        places.append(size)
        if len(places) == 1:
            raise FULL[0]
        return made(logits, labels, size)

    monkeypatch.setattr(labeler, "full_size_mask", full_at_first)
    with caplog.at_level(logging.INFO):
        (labeled,) = tiny.label([image])
    np.testing.assert_array_equal(labeled.mask, expected.mask)
    assert labeled.discriminator_score == expected.discriminator_score
    assert places == [(50, 70), (50, 70)]
    assert "the cpu device has no memory for a mask of 50x70: it is made on the CPU" in caplog.text
