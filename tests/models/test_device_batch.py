"""A batch on a GPU: one copy there, one back, nothing waited for in between; and the same masks as a CPU's.

No GPU is used: on torch's meta device whatever asks for a value fails, and copies can be counted.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_model import write_random_model
from torch.utils._python_dispatch import TorchDispatchMode

from segpipe.errors import DeviceError, DeviceMemoryError
from segpipe.models import device, inference, labeler
from segpipe.models.half_weights import hold_in_bfloat16
from segpipe.models.inference import FinishedMask, fetched
from segpipe.models.labeler import JudgedMask, Labeled, Labeler, load_model
from segpipe.models.verdict import Verdict

TILES = {"scale": 1.0, "tile": (64, 96), "margin": 16}
SIZES = [(90, 110), (32, 48), (90, 110), (40, 31), (90, 110)]


@pytest.fixture(scope="module", params=[{}, TILES], ids=["fitted", "tiles"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Labeler:
    return load_model(write_random_model(str(tmp_path_factory.mktemp("model")), **request.param), "cpu")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    blocks = [draws.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8) for h, w in SIZES]
    return [np.kron(b, np.ones((8, 8, 1), np.uint8))[:h, :w] for b, (h, w) in zip(blocks, SIZES, strict=True)]


class Copies(TorchDispatchMode):
    """Counts the copies between main memory and the meta device, and lets those from it give zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "copy_" and args[1].is_meta and not args[0].is_meta:
            self.back += 1
            return args[0].zero_()
        result = func(*args, **(kwargs or {}))
        source = {"copy_": 1, "to": 0, "_to_copy": 0}.get(name)
        if source is not None and result.is_meta and not args[source].is_meta:
            self.there += 1
        return result


@pytest.fixture
def on_meta(model: Labeler, monkeypatch: pytest.MonkeyPatch) -> Labeler:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    bundle = replace(
        model.bundle,
        generator=deepcopy(model.bundle.generator).to("meta"),
        discriminator=deepcopy(model.bundle.discriminator).to("meta"),
    )
    return replace(model, bundle=bundle, device="meta", gathered_images=64)


def test_a_batch_is_one_copy_there_and_one_back_and_waits_for_nothing(
    on_meta: Labeler, images: list[np.ndarray]
) -> None:
    prepared = [on_meta.prepare(image) for image in images]
    with Copies():
        on_meta.judge_at_size(prepared, SIZES)  # what normalises an image is copied once for all batches
    with Copies() as copies:
        judged = on_meta.judge_at_size(prepared, SIZES)
    assert [one.mask.shape for one in judged] == SIZES
    # Neighbours have tiles of other sizes here, and all images are looked at as a whole in one more.
    passes = 1 if on_meta.bundle.spec.scale is None else len(images) + 1
    assert (copies.there, copies.back) == (passes, 1)


@pytest.mark.parametrize(
    "waiting", [torch.Tensor.item, torch.Tensor.nonzero, lambda values: values[values > 0]]
)
def test_the_meta_device_shows_what_would_wait(waiting: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        waiting(torch.empty(1, device="meta"))


def assert_same(found: Labeled, expected: Labeled) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_what_comes_back_in_one_copy_is_what_one_by_one_would_have_said(
    model: Labeler, images: list[np.ndarray]
) -> None:
    prepared = [model.prepare(image) for image in images]
    judged = model.judge_at_size(prepared, SIZES)
    assert all(isinstance(one, FinishedMask) for one in judged)
    for one, size, expected in zip(judged, SIZES, model.label(images), strict=True):
        assert_same(model.finish(one, *size), expected)


def test_what_is_packed_comes_back_bit_for_bit() -> None:
    tensors = [
        torch.tensor([1, 2, 255], dtype=torch.uint8),
        torch.tensor([[0.1, math.nan], [-0.0, math.inf]]),
        torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).T,
        torch.tensor(0.25, dtype=torch.float64),
        torch.empty(0, 4),
        torch.arange(3),
    ]
    content = device.packed(tensors)
    assert (content.dtype, content.ndim) == (torch.uint8, 1)
    for found, tensor in zip(device.unpacked(content, tensors), tensors, strict=True):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(device.packed([found]), device.packed([tensor]))


def test_a_verdict_is_fetched_as_it_is() -> None:
    verdict = Verdict(
        parts=torch.arange(8.0).view(2, 4),
        score=torch.tensor([0.25, -3.0]),
        class_confidences=torch.tensor([[0.5, math.nan, 1.0], [math.nan, 0.25, 0.0]]),
        correctness=torch.rand(2, 1, 5, 6).to(torch.bfloat16),
    )
    for name, value in vars(fetched(verdict)).items():
        expected = getattr(verdict, name).float()
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


FULL, BROKEN = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("CUDA error: unspecified launch failure"),
)


@pytest.mark.parametrize("error", [FULL, BROKEN], ids=str)
def test_masks_of_a_batch_that_the_device_cannot_raise_are_no_failed_images(
    model: Labeler, images: list[np.ndarray], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full memory is for the batch to be halved; a failed device is the end of the run."""

    def fails(*_: Any) -> Any:
        raise error

    for place in ("raised_each", "fetch_together"):
        monkeypatch.setattr(inference, place, fails)
    monkeypatch.setattr("segpipe.models.tiled.fetch_together", fails)
    prepared = [model.prepare(image) for image in images]
    with pytest.raises(DeviceMemoryError if error is FULL else DeviceError):
        model.judge_at_size(prepared, SIZES)


@pytest.mark.parametrize("model", [TILES], ids=["tiles"], indirect=True)
@pytest.mark.parametrize("place", ["_nothing_yet", "_add", "_judge_whole", "_summed_up"])
@pytest.mark.parametrize("error", [FULL, BROKEN], ids=str)
def test_tiles_know_a_failed_device_and_full_memory_wherever_they_meet_them(
    model: Labeler, images: list[np.ndarray], place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(f"segpipe.models.tiled.{place}", fails)
    with pytest.raises(DeviceMemoryError if error is FULL else DeviceError):
        model.judge([model.prepare(image) for image in images])


@pytest.mark.parametrize("model", [{}], ids=["fitted"], indirect=True)
def test_a_mask_too_large_for_the_device_is_made_on_the_cpu(
    model: Labeler, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = model.label(images[:1])

    def fails(*_: Any) -> Any:
        raise FULL

    monkeypatch.setattr(inference, "raised_each", fails)
    (judged,) = model.judge_at_size([model.prepare(images[0])], SIZES[:1])
    assert isinstance(judged, JudgedMask)
    assert_same(model.finish(judged, *SIZES[0]), expected)


def test_a_model_that_does_not_fit_and_a_device_that_fails_as_it_is_loaded_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_random_model(str(tmp_path))
    for error, kind in ((FULL, DeviceMemoryError), (BROKEN, DeviceError)):

        def fails(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(labeler, "load_bundle", fails)
        with pytest.raises(kind):
            load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("free_gb", "pixels", "n_classes", "images"),
    [(139, 256 * 352, 12, 64), (8, 256 * 352, 12, 21), (0.01, 256 * 352, 12, 1), (8, 1024 * 2048, 12, 1)],
)
def test_a_batch_fits_in_half_of_the_memory_that_is_free(
    free_gb: float, pixels: int, n_classes: int, images: int
) -> None:
    assert device.images_at_once(int(free_gb * 10**9), pixels, n_classes) == images


@pytest.mark.parametrize("architecture", ["unet-ibn", "unet", "plain"])
def test_weights_held_in_bfloat16_give_what_autocast_gives(
    architecture: str, tmp_path: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_bfloat16", lambda _: True)
    model = load_model(write_random_model(str(tmp_path), architecture=architecture), "cpu")
    expected = model.label(images)
    hold_in_bfloat16(model.bundle)
    types = {
        layer.weight.dtype for layer in model.bundle.generator.modules() if type(layer) is torch.nn.Conv2d
    }
    assert types == {torch.bfloat16}
    for found, one in zip(model.label(images), expected, strict=True):
        assert_same(found, one)
