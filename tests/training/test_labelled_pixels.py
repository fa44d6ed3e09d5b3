"""Labelled images as training reads them: from disk or anew the same, and never more at once than allowed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segpipe.concurrency import Budget
from segpipe.datasets import open_dataset
from segpipe.errors import DatasetError, StorageError
from segpipe.training import labelled_pixels
from segpipe.training.labelled_pixels import LabelledPixels, Read, class_counts, load_pixels, load_split
from tests.support.labelled_arrays import plain_spec
from tests.support.labelled_sets import png, put, write_set

IGNORED = 200
PLENTY = 10**9
FITTED = plain_spec(("ground", "disc"), (32, 64), IGNORED)
SCALED = FITTED.model_copy(update={"scale": 2.0, "tile": (64, 64), "margin": 16})


def drawn(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 2x2 pixels, so that half the size loses nothing."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    mask = (image[:, :, 0] > 200).astype(np.uint8)
    return tuple(block.repeat(2, 0).repeat(2, 1) for block in (image, mask))  # type: ignore[return-value]


SIZES = ((40, 60), (100, 30), (64, 128))
PAIRS = [drawn(*size, seed) for seed, size in enumerate(SIZES)]
# Bytes of each at half its size: three of the image and one of the mask a pixel.
BYTES = [4 * height * width // 4 for height, width in SIZES]


def reads_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]], read: list[int] | None = None) -> list[Read]:
    @contextmanager
    def opened(row: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if read is not None:
            read.append(row)
        yield pairs[row]

    return [partial(opened, row) for row in range(len(pairs))]


@contextmanager
def loaded(cache_bytes: int, read: list[int] | None = None) -> Iterator[LabelledPixels]:
    with load_pixels(reads_of(PAIRS, read), [1.0, 2.0, 3.0], SCALED, cache_bytes) as labelled:
        yield labelled


def test_images_are_kept_at_the_networks_scale_each_of_its_own_size() -> None:
    with loaded(PLENTY) as labelled:
        assert labelled.sizes.tolist() == [[20, 30], [50, 15], [32, 64]]
        assert labelled.weights.tolist() == [1, 2, 3]
        for row, (image, mask) in enumerate(PAIRS):
            kept, kept_mask = labelled.pixels(row)
            assert np.array_equal(kept_mask, mask[::2, ::2])
            expected = Image.fromarray(image).resize(kept.shape[:0:-1], Image.Resampling.BILINEAR)
            assert np.array_equal(kept.transpose(1, 2, 0), expected)
        discs = sum(int(mask[::2, ::2].sum()) for _, mask in PAIRS)
        assert labelled.counts.tolist() == [sum(BYTES) // 4 - discs, discs]


def test_without_a_scale_every_image_is_fitted_to_the_working_size() -> None:
    with load_pixels(reads_of(PAIRS), [1.0] * 3, FITTED, PLENTY) as labelled:
        images, masks = labelled.batch(torch.tensor([2, 0]))
        assert images.shape == (2, 3, 32, 64)
        assert torch.equal(masks[0], torch.from_numpy(PAIRS[2][1][::2, ::2].copy()))


@pytest.mark.parametrize(("cache_bytes", "kept"), [(PLENTY, 3), (sum(BYTES), 3), (sum(BYTES) - 1, 2), (0, 0)])
def test_what_does_not_fit_is_read_anew_and_is_the_same(
    cache_bytes: int, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[int] = []
    corners = torch.tensor([[-5, 3], [10, -2], [20, 30]])
    with loaded(PLENTY) as whole, loaded(cache_bytes, read) as labelled:
        read.clear()
        expected = whole.cut(torch.arange(3), corners, (24, 40))
        found = labelled.cut(torch.arange(3), corners, (24, 40))
        assert len(read) == 3 - kept
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.equal(labelled.counts, whole.counts)
        assert np.array_equal(labelled.rare.places.at, whole.rare.places.at)
    assert ("--cache-bytes" in caplog.text) == (kept < 3)


def test_windows_are_black_and_ignored_outside_the_image() -> None:
    with loaded(PLENTY) as labelled:
        image, mask = (torch.from_numpy(np.array(part)) for part in labelled.pixels(0))
        seen, labels = labelled.cut(
            torch.tensor([0, 0, 0]), torch.tensor([[-2, -3], [15, 25], [90, 0]]), (8, 9)
        )
    assert torch.equal(seen[0, :, 2:, 3:], image[:, :6, :6])
    assert torch.equal(labels[0, 2:, 3:], mask[:6, :6])
    assert torch.equal(seen[1, :, :5, :5], image[:, 15:, 25:])
    outside = torch.ones(3, 8, 9, dtype=torch.bool)
    outside[0, 2:, 3:] = outside[1, :5, :5] = False
    assert (labels[outside] == IGNORED).all()
    assert (seen.permute(0, 2, 3, 1)[outside] == 0).all()


def test_so_many_bytes_of_disk_are_used_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    temporary_file = labelled_pixels.tempfile.TemporaryFile

    @contextmanager
    def measured() -> Iterator[object]:
        with temporary_file() as file:
            yield file
            written.append(file.seek(0, 2))

    monkeypatch.setattr(labelled_pixels.tempfile, "TemporaryFile", measured)
    for most in (PLENTY, BYTES[1] + 1, 0):
        with loaded(most):
            pass
    assert written[0] == sum(BYTES)
    assert BYTES[1] <= written[1] <= BYTES[1] + 1 or written[1] == BYTES[0]
    assert written[2] == 0


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full() -> Iterator[object]:
        with open("/dev/full", "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr(labelled_pixels.tempfile, "TemporaryFile", full)
    with (
        pytest.raises(StorageError, match=r"do not fit into .*No space left.*TMPDIR.*--cache-bytes"),
        loaded(PLENTY),
    ):
        pass


def test_an_image_counts_as_in_work_until_it_is_small_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight images are read once to look through them and once more for a window each, in full."""
    held, seen = threading.local(), []
    resize_image = labelled_pixels.resize_image

    class Watched(Budget):
        @contextmanager
        def held(self, amount: int) -> Iterator[None]:
            with super().held(amount):
                held.pixels = amount
                yield
                held.pixels = 0

    def watched(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        seen.append((held.pixels, image.shape[:2], size))
        return resize_image(image, size)

    monkeypatch.setattr(labelled_pixels, "Budget", Watched)
    monkeypatch.setattr(labelled_pixels, "resize_image", watched)
    dataset = open_dataset(str(write_set(tmp_path / "data", {"train": 8})))
    with load_split(dataset, "train", SCALED, 0) as labelled:
        labelled.cut(torch.arange(8), torch.zeros(8, 2, dtype=torch.int64), (8, 8))
    assert seen == [(48 * 64, (48, 64), (24, 32))] * 16


def test_a_split_without_a_labelled_pixel_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "dataset.json", json.dumps({"classes": ["a", "b"], "ignore_index": IGNORED}).encode())
    put(tmp_path / "train/images/a.png", png(np.zeros((8, 8, 3), np.uint8)))
    put(tmp_path / "train/masks/a.png", png(np.full((8, 8), IGNORED, np.uint8)))
    dataset = open_dataset(str(tmp_path))
    with (
        load_split(dataset, "train", FITTED, PLENTY) as labelled,
        pytest.raises(DatasetError, match="every pixel is the ignore index"),
    ):
        class_counts(labelled)
