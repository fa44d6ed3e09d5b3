"""Street scenes: repeatable, all classes there, picture and mask in register; odd and broken files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import scenes
from segpipe import storage
from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.errors import ImageError
from segpipe.images import decode_image


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def many() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = _rng(1)
    return [scenes.draw_scene(rng) for _ in range(60)]


def test_same_seed_same_scene_and_next_scene_differs() -> None:
    first, again, rng = scenes.draw_scene(_rng(7)), scenes.draw_scene(_rng(7)), _rng(7)
    scenes.draw_scene(rng)
    following = scenes.draw_scene(rng)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], following[1])


@pytest.mark.parametrize(("height", "width"), [(96, 128), (61, 97), (120, 90)])
def test_size_and_types(height: int, width: int) -> None:
    image, mask = scenes.draw_scene(_rng(), height, width)
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.max() < len(scenes.CLASSES)


def test_every_class_is_common_enough_to_be_learnt(many: list[tuple[np.ndarray, np.ndarray]]) -> None:
    masks = np.stack([mask for _, mask in many])
    shares = np.bincount(masks.ravel(), minlength=7) / masks.size
    assert (shares > [0.05, 0.15, 0.2, 0.03, 0.05, 0.02, 0.005]).all(), shares
    assert np.mean([(mask == scenes.PERSON).any() for mask in masks]) > 0.7


def test_sky_is_above_the_road(many: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, mask in many:
        sky, road = np.nonzero(mask == scenes.SKY)[0], np.nonzero(mask == scenes.ROAD)[0]
        assert road.mean() > mask.shape[0] / 2
        assert not sky.size or sky.max() < np.median(road)


def test_picture_and_mask_are_in_register(many: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Mask borders lie on picture edges: a mask shifted by two pixels fits the edges less well."""

    def edge_strength(image: np.ndarray, mask: np.ndarray) -> float:
        steps = np.abs(np.diff(image.astype(float).mean(axis=2), axis=1))
        return float(steps[np.diff(mask.astype(int), axis=1) != 0].mean())

    in_place = np.mean([edge_strength(image, mask) for image, mask in many])
    for shift in (-2, 2):
        assert in_place > 1.3 * np.mean([edge_strength(i, np.roll(m, shift, axis=1)) for i, m in many])


def test_scenes_differ_in_light(many: list[tuple[np.ndarray, np.ndarray]]) -> None:
    brightness = np.array([image.mean() for image, _ in many])
    assert brightness.min() < 50 < 110 < brightness.max()


def test_labelled_split_reads_back_and_grows_by_split(tmp_path: Path) -> None:
    root, rng = str(tmp_path / "streets"), _rng()
    scenes.write_labelled(root, "train", 3, 2, rng, height=48, width=64)
    scenes.write_labelled(root, "val", 2, 0, rng, height=48, width=64)
    dataset = open_dataset(root)
    assert dataset.classes == scenes.CLASSES
    samples = list_samples(dataset, "train")
    assert len(samples) == 5
    assert len(list_samples(dataset, "val")) == 2
    image, mask = read_sample(dataset, samples[0])
    assert image.shape == (48, 64, 3)
    assert mask.shape == (48, 64)


def test_only_the_degraded_scenes_differ_from_their_drawing(tmp_path: Path) -> None:
    """Without degraded scenes the split holds the scenes exactly as drawn."""
    root = str(tmp_path / "streets")
    dataset = scenes.write_labelled(root, "val", 3, 0, _rng(5), height=48, width=64)
    stored = [read_sample(dataset, sample) for sample in list_samples(dataset, "val")]
    rng = _rng(5)
    rng.permutation(3)
    for image, mask in stored:
        drawn, truth = scenes.draw_scene(rng, 48, 64)
        assert np.array_equal(image, drawn)
        assert np.array_equal(mask, truth)


def test_raw_bucket_holds_exactly_the_images_of_the_truth(tmp_path: Path) -> None:
    source = str(tmp_path / "bucket")
    truth = scenes.write_raw_bucket(source, 4, 3, _rng(), height=48, width=64)
    listed = list(storage.list_objects(source))
    assert {item.key for item in listed} == truth.keys()
    assert len(truth) == 7
    for item in listed:
        assert decode_image(storage.read_bytes(item.uri)).shape[:2] == truth[item.key].shape


def test_odd_images_are_what_they_claim_and_show_their_scene(tmp_path: Path) -> None:
    source = str(tmp_path)
    truth = scenes.write_odd_images(source, _rng(4))
    rng = _rng(4)
    drawn = {key: scenes.draw_scene(rng)[0] for key in truth}
    for key, image in drawn.items():
        shown = decode_image(storage.read_bytes(storage.join(source, key)))
        assert shown.shape == image.shape, key
        assert np.abs(shown.astype(int) - image.astype(int)).mean() < 12, key

    def opened(name: str) -> Image.Image:
        return Image.open(io.BytesIO((tmp_path / "odd" / name).read_bytes()))

    assert opened("cmyk.jpg").mode == "CMYK"
    assert opened("palette.png").mode == "P"
    assert opened("alpha.png").mode == "RGBA"
    assert opened("png-named.jpg").format == "PNG"
    assert opened("exif-rotated.jpg").size == (scenes.HEIGHT, scenes.WIDTH)
    assert (tmp_path / "odd" / "16-bit.png").read_bytes()[24] == 16


def test_broken_files_are_refused_with_their_reason(tmp_path: Path) -> None:
    keys = scenes.write_broken_files(str(tmp_path), _rng())
    reasons = {}
    for key in keys:
        with pytest.raises(ImageError) as refused:
            decode_image((tmp_path / key).read_bytes())
        reasons[key] = refused.value.reason
    assert reasons["broken/bomb.png"] == "too_large"
    assert reasons["broken/truncated.jpg"] == "unreadable"
    assert reasons["broken/empty.jpg"] == "unreadable"
    assert reasons.keys() == {
        f"broken/{name}" for name in ("bomb.png", "empty.jpg", "text.jpg", "truncated.jpg")
    }
    assert (tmp_path / "broken" / "bomb.png").stat().st_size < 1000
