"""C1 data sets: what is written reads back, and every way to break one gives one clear line."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image

from segpipe.datasets import (
    Dataset,
    fingerprint,
    list_samples,
    list_split,
    open_dataset,
    read_sample,
    write_dataset,
    write_sample,
)
from segpipe.errors import DatasetError

CLASSES = ("background", "cell", "wall")


def _image(height: int = 8, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _mask(height: int = 8, width: int = 12) -> np.ndarray:
    return (np.indices((height, width)).sum(axis=0) % 3).astype(np.uint8)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two samples, a/one and two, in split train."""
    made = write_dataset(str(tmp_path / "cells"), "cells", CLASSES, 255)
    write_sample(made, "train", "a/one", _image(seed=1), _mask())
    write_sample(made, "train", "two", _image(seed=2), _mask())
    return made


def _refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(DatasetError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


class TestDescription:
    def test_reads_what_was_written(self, dataset: Dataset) -> None:
        assert open_dataset(dataset.root) == dataset
        assert dataset.classes == CLASSES

    def test_layout_on_disk_is_the_contract(self, dataset: Dataset) -> None:
        root = Path(dataset.root)
        assert json.loads((root / "dataset.json").read_text()) == {
            "name": "cells",
            "classes": ["background", "cell", "wall"],
            "ignore_index": 255,
        }
        files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        assert files == [
            "dataset.json",
            "train/images/a/one.png",
            "train/images/two.png",
            "train/masks/a/one.png",
            "train/masks/two.png",
        ]

    def test_unknown_fields_are_no_error_and_name_falls_back_to_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "dataset.json").write_text('{"classes": ["a", "b"], "licence": "CC0"}')
        assert open_dataset(str(tmp_path)) == Dataset(str(tmp_path), tmp_path.name, ("a", "b"), 255)

    def test_a_range_of_values_is_read_and_written(self, tmp_path: Path) -> None:
        (tmp_path / "dataset.json").write_text('{"classes": ["a", "b"], "image": {"range": [-1, 4095]}}')
        assert open_dataset(str(tmp_path)).image_range == (-1.0, 4095.0)
        made = write_dataset(str(tmp_path / "b"), "b", ("a", "b"), 255, (0.5, 4095.0))
        assert open_dataset(made.root) == made
        text = (tmp_path / "b/dataset.json").read_text()
        assert json.loads(text)["image"] == {"range": [0.5, 4095]}
        assert "4095.0" not in text
        plain = write_dataset(str(tmp_path / "c"), "c", ("a", "b"), 255)
        assert open_dataset(plain.root).image_range is None
        assert "image" not in json.loads((tmp_path / "c/dataset.json").read_text())
        assert "LOW must be below HIGH" in _refused(
            write_dataset, str(tmp_path / "d"), "d", ("a", "b"), 255, (5.0, 5.0)
        )

    @pytest.mark.parametrize(
        ("image", "said"),
        [
            ("5", '"image" must be {"range": [LOW, HIGH]}'),
            ("[0, 4095]", '"image" must be {"range": [LOW, HIGH]}'),
            ("{}", '"image" must be {"range": [LOW, HIGH]}'),
            ('{"ranges": [0, 4095]}', '"image" must be {"range": [LOW, HIGH]}'),
            ('{"range": [0, 4095], "unit": "counts"}', '"image" must be {"range": [LOW, HIGH]}'),
            ('{"range": null}', "is not a range"),
            ('{"range": [0]}', "is not a range"),
            ('{"range": ["0", "4095"]}', "is not a range"),
            ('{"range": [4095, 0]}', "LOW must be below HIGH"),
            ('{"range": [0, 0]}', "LOW must be below HIGH"),
            ('{"range": [0, Infinity]}', "is not a range"),
            ('{"range": [NaN, 1]}', "is not a range"),
        ],
    )
    def test_no_range_at_all(self, tmp_path: Path, image: str, said: str) -> None:
        (tmp_path / "dataset.json").write_text(f'{{"classes": ["a", "b"], "image": {image}}}')
        message = _refused(open_dataset, str(tmp_path))
        assert said in message
        assert f"{tmp_path}/dataset.json" in message

    def test_missing(self, tmp_path: Path) -> None:
        assert f"{tmp_path}/dataset.json is missing" in _refused(open_dataset, str(tmp_path))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "not valid JSON"),
            ('{"classes": ["a", "b"], "classes": ["b", "a"]}', "'classes' is there twice"),
            ("\xff\xfe", "not valid JSON"),
            ("[1]", "JSON object"),
            ("{}", '"classes" must be a list'),
            ('{"classes": "ab"}', '"classes" must be a list'),
            ('{"classes": ["a", 1]}', '"classes" must be a list'),
            ('{"classes": []}', "has 0 names"),
            ('{"classes": ["a"]}', "has 1 names"),
            (json.dumps({"classes": [f"c{i}" for i in range(256)]}), "has 256 names"),
            ('{"classes": ["a", "b", "a"]}', "'a' twice"),
            ('{"classes": ["a", "b"], "ignore_index": 256}', "is 256"),
            ('{"classes": ["a", "b"], "ignore_index": -1}', "is -1"),
            ('{"classes": ["a", "b"], "ignore_index": 1}', "so that it is no class"),
            ('{"classes": ["a", "b"], "ignore_index": true}', "is True"),
            ('{"classes": ["a", "b"], "ignore_index": null}', "is None"),
        ],
    )
    def test_unusable(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
        message = _refused(open_dataset, str(tmp_path))
        assert said in message
        assert str(tmp_path) in message

    def test_255_classes_fit_with_ignore_index_255(self, tmp_path: Path) -> None:
        names = [f"class {number}" for number in range(255)]
        assert len(write_dataset(str(tmp_path), "many", names, 255).classes) == 255

    def test_unusable_classes_are_not_written(self, tmp_path: Path) -> None:
        assert "has 1 names" in _refused(write_dataset, str(tmp_path), "x", ["only"], 255)
        assert not (tmp_path / "dataset.json").exists()


class TestSamples:
    def test_sorted_with_nested_keys(self, dataset: Dataset) -> None:
        samples = list_samples(dataset, "train")
        assert [sample.key for sample in samples] == ["a/one", "two"]
        assert samples[0].image_uri == f"{dataset.root}/train/images/a/one.png"
        assert samples[0].mask_uri == f"{dataset.root}/train/masks/a/one.png"

    def test_extensions_in_any_case_and_dots_in_keys(self, dataset: Dataset) -> None:
        images = Path(dataset.root, "train/images")
        for name in ("x.JPG", "y.jpeg", "v1.2.PNG"):
            (images / name).write_bytes(b"")
            (images.parent / "masks" / (name.rpartition(".")[0] + ".png")).write_bytes(b"")
        assert [s.key for s in list_samples(dataset, "train")] == ["a/one", "two", "v1.2", "x", "y"]

    def test_other_files_are_not_samples(self, dataset: Dataset) -> None:
        for name in ("images/README.md", "images/README", "masks/notes.txt", "list.txt"):
            Path(dataset.root, "train", name).write_text("x")
        assert len(list_samples(dataset, "train")) == 2

    def test_what_file_managers_leave_behind_is_counted_and_no_sample(self, dataset: Dataset) -> None:
        for name in (
            "images/.DS_Store",
            "images/Thumbs.db",
            "images/._two.png",
            "images/__MACOSX/x.png",
            "images/@eaDir/two.png/SYNO.jpg",
            "masks/._two.png",
        ):
            path = Path(dataset.root, "train", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\5\x16\7")
        found = list_split(dataset, "train")
        assert [sample.key for sample in found.samples] == ["a/one", "two"]
        assert found.left_aside == {"hidden": 5, ".db": 1}

    @pytest.mark.parametrize("extension", ["tif", "TIFF", "bmp", "webp", "gif", "ppm", "xyz", ""])
    def test_images_of_every_format_under_any_extension(
        self, dataset: Dataset, extension: str, encoded: Callable[..., bytes]
    ) -> None:
        kinds = {"tif": "TIFF", "tiff": "TIFF", "bmp": "BMP", "webp": "WEBP", "gif": "GIF", "ppm": "PPM"}
        image = Path(dataset.root, "train/images/two.png")
        image.unlink()
        grey = np.arange(96, dtype=np.uint8).reshape(8, 12)
        options = {"lossless": True} if extension == "webp" else {}
        content = encoded(grey, kinds.get(extension.lower(), "PNG"), **options)
        image.with_name(f"two.{extension}" if extension else "two").write_bytes(content)
        sample = list_samples(dataset, "train")[1]
        assert sample.key == "two"
        assert np.array_equal(read_sample(dataset, sample)[0], np.dstack([grey] * 3))

    def test_a_mask_under_another_name_is_named(self, dataset: Dataset) -> None:
        masks = Path(dataset.root, "train/masks")
        (masks / "two.png").rename(masks / "two_mask.png")
        message = _refused(list_samples, dataset, "train")
        assert "train/images/two.png has no mask" in message
        assert "two_mask.png lies there" in message
        (masks / "two_mask.png").rename(masks / "two.jpg")
        message = _refused(list_samples, dataset, "train")
        assert "two.jpg lies there, which is the KEY.png of no image: add masks/two.png" in message

    def test_missing_split_names_those_there(self, dataset: Dataset) -> None:
        write_sample(dataset, "val", "z", _image(), _mask())
        assert "no split 'tset'; it has: train, val" in _refused(list_samples, dataset, "tset")

    def test_split_without_images(self, dataset: Dataset) -> None:
        for path in Path(dataset.root, "train/images").rglob("*.png"):
            path.unlink()
        assert "train/images holds no image" in _refused(list_samples, dataset, "train")

    def test_image_without_mask(self, dataset: Dataset) -> None:
        Path(dataset.root, "train/masks/two.png").unlink()
        message = _refused(list_samples, dataset, "train")
        assert "train/images/two.png has no mask" in message

    def test_mask_without_image(self, dataset: Dataset) -> None:
        for key in ("a/one", "two"):
            Path(dataset.root, f"train/images/{key}.png").unlink()
        Path(dataset.root, "train/images/other.jpg").write_bytes(b"")
        Path(dataset.root, "train/masks/other.png").write_bytes(b"")
        message = _refused(list_samples, dataset, "train")
        assert "train/masks/a/one.png has no image" in message
        assert "1 more" in message

    def test_two_images_of_one_key(self, dataset: Dataset) -> None:
        Path(dataset.root, "train/images/two.jpg").write_bytes(b"")
        message = _refused(list_samples, dataset, "train")
        assert "two.jpg" in message
        assert "two.png" in message


class TestReading:
    def test_round_trip_with_ignored_pixels(self, dataset: Dataset) -> None:
        image, mask = _image(9, 5), _mask(9, 5)
        mask[0, 0] = 255
        write_sample(dataset, "train", "three", image, mask)
        sample = next(s for s in list_samples(dataset, "train") if s.key == "three")
        read_image, read_mask = read_sample(dataset, sample)
        assert np.array_equal(read_image, image)
        assert np.array_equal(read_mask, mask)
        assert read_mask.dtype == np.uint8

    @settings(max_examples=25, deadline=None)
    @given(
        mask=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)),
        ignore_index=st.integers(3, 255),
    )
    def test_any_mask_round_trips(
        self, tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, ignore_index: int
    ) -> None:
        dataset = write_dataset(str(tmp_path_factory.mktemp("c1")), "x", CLASSES, ignore_index)
        mask = np.where(mask == 3, ignore_index, mask).astype(np.uint8)
        write_sample(dataset, "s", "k", np.zeros((*mask.shape, 3), np.uint8), mask)
        (sample,) = list_samples(dataset, "s")
        assert np.array_equal(read_sample(dataset, sample)[1], mask)

    def test_grey_mask_as_other_tools_write_it(self, dataset: Dataset) -> None:
        Image.fromarray(_mask()).save(Path(dataset.root, "train/masks/two.png"))
        assert np.array_equal(read_sample(dataset, list_samples(dataset, "train")[1])[1], _mask())

    def test_sizes_differ(self, dataset: Dataset) -> None:
        Image.fromarray(_mask(8, 11)).save(Path(dataset.root, "train/masks/two.png"))
        message = _refused(read_sample, dataset, list_samples(dataset, "train")[1])
        assert "train/masks/two.png is 11x8" in message
        assert "12x8" in message

    def test_class_out_of_range(self, dataset: Dataset) -> None:
        mask = _mask()
        mask[3, 4] = 7
        Image.fromarray(mask).save(Path(dataset.root, "train/masks/two.png"))
        message = _refused(read_sample, dataset, list_samples(dataset, "train")[1])
        assert "train/masks/two.png holds class 7 but the data set has 3 classes" in message

    @pytest.mark.parametrize("folder", ["images", "masks"])
    def test_unreadable(self, dataset: Dataset, folder: str) -> None:
        Path(dataset.root, "train", folder, "two.png").write_bytes(b"no picture")
        message = _refused(read_sample, dataset, list_samples(dataset, "train")[1])
        assert f"train/{folder}/two.png" in message

    def test_mask_fits_an_exif_rotated_image_as_displayed(self, dataset: Dataset) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        stored = Image.fromarray(_image(8, 12))  # stored 12 wide, displayed 8 wide and 12 high
        buffer = io.BytesIO()
        stored.save(buffer, "JPEG", exif=exif)
        Path(dataset.root, "train/images/turned.jpg").write_bytes(buffer.getvalue())
        Image.fromarray(_mask(12, 8)).save(Path(dataset.root, "train/masks/turned.png"))
        sample = list_samples(dataset, "train")[1]
        assert sample.key == "turned"
        assert read_sample(dataset, sample)[0].shape == (12, 8, 3)
        Image.fromarray(_mask(8, 12)).save(Path(dataset.root, "train/masks/turned.png"))
        message = _refused(read_sample, dataset, sample)
        assert "8x12 as displayed (EXIF orientation 6 turns it; the mask has the size of its" in message

    def test_misfits_are_refused_on_writing(self, dataset: Dataset) -> None:
        assert "5x5" in _refused(write_sample, dataset, "train", "x", _image(), _mask(5, 5))
        assert "class 9" in _refused(
            write_sample, dataset, "train", "x", _image(), np.full((8, 12), 9, np.uint8)
        )
        assert len(list_samples(dataset, "train")) == 2


class TestFingerprint:
    def test_depends_on_content_not_place(self, dataset: Dataset, tmp_path: Path) -> None:
        copy = write_dataset(str(tmp_path / "copy"), "another name", CLASSES, 255)
        write_sample(copy, "val", "two", _image(seed=2), _mask())
        write_sample(copy, "val", "a/one", _image(seed=1), _mask())
        assert fingerprint(copy, "val") == fingerprint(dataset, "train")
        assert len(fingerprint(dataset, "train")) == 64

    def test_changes_with_image_mask_key_and_classes(self, dataset: Dataset) -> None:
        seen = {fingerprint(dataset, "train")}
        write_sample(dataset, "train", "two", _image(seed=3), _mask())
        seen.add(fingerprint(dataset, "train"))
        write_sample(dataset, "train", "two", _image(seed=3), np.zeros((8, 12), np.uint8))
        seen.add(fingerprint(dataset, "train"))
        Path(dataset.root, "train/images/two.png").rename(Path(dataset.root, "train/images/twx.png"))
        Path(dataset.root, "train/masks/two.png").rename(Path(dataset.root, "train/masks/twx.png"))
        seen.add(fingerprint(dataset, "train"))
        seen.add(
            fingerprint(write_dataset(dataset.root, "cells", ("wall", "cell", "background"), 255), "train")
        )
        assert len(seen) == 5

    def test_a_range_changes_it_and_without_one_it_is_as_ever(self, tmp_path: Path) -> None:
        root, classes = str(tmp_path / "one"), ("a", "b")
        dataset = write_dataset(root, "one", classes, 255)
        write_sample(dataset, "s", "k", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))
        image, mask = (Path(root, f"s/{folder}/k.png").read_bytes() for folder in ("images", "masks"))
        by_hand = (
            json.dumps([list(classes), 255]).encode()
            + json.dumps(["k", hashlib.sha256(image).hexdigest(), hashlib.sha256(mask).hexdigest()]).encode()
        )
        assert fingerprint(dataset, "s") == hashlib.sha256(by_hand).hexdigest()
        found = {
            fingerprint(replace(dataset, image_range=one), "s") for one in (None, (0.0, 9.0), (0.0, 8.0))
        }
        assert len(found) == 3

    def test_swapping_two_masks_changes_it(self, dataset: Dataset) -> None:
        write_sample(dataset, "train", "two", _image(seed=2), np.zeros((8, 12), np.uint8))
        before = fingerprint(dataset, "train")
        masks = Path(dataset.root, "train/masks")
        (masks / "two.png").rename(masks / "spare")
        (masks / "a/one.png").rename(masks / "two.png")
        (masks / "spare").rename(masks / "a/one.png")
        assert fingerprint(dataset, "train") != before


def test_data_set_in_any_fsspec_store() -> None:
    dataset = write_dataset("memory://bucket/cells/", "cells", CLASSES, 255)
    write_sample(dataset, "train", "deep/key", _image(), _mask())
    reopened = open_dataset("memory://bucket/cells")
    (sample,) = list_samples(reopened, "train")
    assert sample.key == "deep/key"
    assert np.array_equal(read_sample(reopened, sample)[0], _image())
    assert "no split 'val'; it has: train" in _refused(list_samples, reopened, "val")
