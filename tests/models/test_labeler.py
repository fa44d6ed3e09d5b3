"""What `load_model(...).label(...)` promises (contract C9)."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from plain_policy import make_policy

import segpipe
from segpipe import storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import to_json
from segpipe.errors import ImageError, ModelError, PolicyError
from segpipe.models.labeler import JudgedMask, Labeled, Labeler


@pytest.fixture(scope="module")
def labeler(trained_model: str) -> Labeler:
    return segpipe.load_model(trained_model, "cpu")


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


IMAGES = {
    "one pixel": noise_image(1, 1),
    "one row": noise_image(1, 300),
    "one column": noise_image(300, 1),
    "wide": noise_image(3, 500),
    "tall": noise_image(2000, 10),
    "odd": noise_image(31, 33),
    "large": noise_image(700, 500),
    "black": np.zeros((64, 64, 3), np.uint8),
    "white": np.full((64, 64, 3), 255, np.uint8),
    "constant": np.full((40, 90, 3), (10, 200, 90), np.uint8),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES.keys())
def test_any_image_gets_a_mask_of_its_own_size_and_finite_scores(labeler: Labeler, image: np.ndarray) -> None:
    (labeled,) = labeler.label([image])
    assert labeled.mask.shape == image.shape[:2]
    assert labeled.mask.dtype == np.uint8
    assert labeled.mask.max() < len(labeler.classes)
    assert 0 <= labeled.confidence <= 1
    assert math.isfinite(labeled.discriminator_score)
    pixels = [np.count_nonzero(labeled.mask == index) for index in range(len(labeled.class_fractions))]
    assert labeled.class_fractions == pytest.approx(np.divide(pixels, labeled.mask.size))
    check_class_confidences(labeled, len(labeler.classes))
    check_confidence_map(labeled, labeler)


def check_class_confidences(labeled: Labeled, n_classes: int) -> None:
    present = np.isin(np.arange(n_classes), labeled.mask)
    assert np.array_equal(labeled.class_fractions > 0, present)
    assert np.array_equal(~np.isnan(labeled.class_confidences), present)
    assert ((labeled.class_confidences[present] >= 0) & (labeled.class_confidences[present] <= 1)).all()


def check_confidence_map(labeled: Labeled, labeler: Labeler) -> None:
    working = labeler.bundle.spec.working_size
    stride = labeler.bundle.generator.output_stride
    assert labeled.confidence_map.shape == (working[0] // stride, working[1] // stride)
    assert labeled.confidence_map.dtype == np.float32
    assert labeled.confidence_map.min() >= 0
    assert labeled.confidence_map.max() <= 1


def test_an_image_gets_the_same_mask_and_score_in_any_company(labeler: Labeler) -> None:
    images = [noise_image(40 + 7 * seed, 60, seed) for seed in range(11)]
    together = labeler.label(images)
    for image, labeled in zip(images, together, strict=True):
        (alone,) = labeler.label([image])
        assert np.mean(alone.mask != labeled.mask) < 0.001
        assert alone.discriminator_score == pytest.approx(labeled.discriminator_score, abs=1e-3)
        np.testing.assert_allclose(alone.confidence_map, labeled.confidence_map, atol=1e-3)
        np.testing.assert_allclose(alone.class_confidences, labeled.class_confidences, atol=1e-2)


def test_without_a_policy_the_confidence_is_the_score_as_an_iou(labeler: Labeler) -> None:
    for labeled in labeler.label([noise_image(32, 64, seed) for seed in range(4)]):
        expected = 1 / (1 + math.exp(-labeled.discriminator_score))
        assert labeled.confidence == pytest.approx(expected, abs=1e-6)


def judged_mask(logits: torch.Tensor, class_confidences: list[float], score: float = 0.0) -> JudgedMask:
    """What the networks might say about one image."""
    labels, correctness = logits.argmax(0).to(torch.uint8), torch.full(logits.shape[1:], 0.5)
    return JudgedMask(logits, labels, torch.tensor(score), torch.tensor(class_confidences), correctness)


def test_a_class_that_shows_at_full_size_only_gets_the_mean_confidence_and_one_that_vanishes_none(
    labeler: Labeler,
) -> None:
    n_classes = len(labeler.classes)
    # Class 2 is the likeliest nowhere on the grid, but between the two pixels of classes 0 and 1 it is.
    logits = torch.full((n_classes, 1, 2), -9.0)
    logits[0, 0], logits[1, 0] = torch.tensor([4.0, -9.0]), torch.tensor([-9.0, 4.0])
    logits[2, 0] = torch.tensor([3.0, 3.0])
    confidences = [0.9, 0.5] + [math.nan] * (n_classes - 2)
    labeled = labeler.finish(judged_mask(logits, confidences), 1, 8)
    assert {0, 1, 2} == set(labeled.mask.ravel().tolist())
    assert labeled.class_confidences[:3] == pytest.approx([0.9, 0.5, 0.7])
    labeled = labeler.finish(judged_mask(logits, confidences), 1, 1)
    assert labeled.mask.tolist() == [[2]]
    assert labeled.class_confidences[2] == pytest.approx(0.7)
    assert np.isnan(np.delete(labeled.class_confidences, 2)).all()


@pytest.mark.parametrize(("score", "confidence"), [(-1e4, 0.0), (0.0, 0.5), (1e4, 1.0), (math.nan, 0.0)])
def test_the_most_extreme_score_has_a_confidence(labeler: Labeler, score: float, confidence: float) -> None:
    n_classes = len(labeler.classes)
    judged = judged_mask(torch.randn(n_classes, 4, 4), [0.5] * n_classes, score)
    labeled = labeler.finish(judged, 8, 8)
    assert labeled.confidence == pytest.approx(confidence)


def test_no_images_give_no_masks(labeler: Labeler) -> None:
    assert labeler.label([]) == []


def policy_for(model_id: str, model_digest: str | None = None, **computed: Any) -> bytes:
    scores = np.linspace(-3, 3, 200)
    policy = make_policy(
        scores,
        0.5 + scores / 6,
        model_id,
        BadFraction(min_iou=0.3, max_bad_fraction=0.2),
        0.9,
        "0" * 64,
        "2026-01-01T00:00:00+00:00",
        model_digest=model_digest,
        **computed,
    )
    return to_json(policy).encode()


@pytest.fixture
def bundle_folder(trained_model: str, tmp_path: Path) -> Path:
    shutil.copytree(trained_model, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_policy_made_for_this_model_is_loaded_and_sets_the_shown_confidence(bundle_folder: Path) -> None:
    model_id = segpipe.load_model(str(bundle_folder), "cpu").model_id
    storage.put(str(bundle_folder / "policy.json"), policy_for(model_id))
    labeler = segpipe.load_model(str(bundle_folder), "cpu")
    assert labeler.policy is not None
    (labeled,) = labeler.label([noise_image(32, 32)])
    expected = np.interp(
        labeled.discriminator_score, labeler.policy.display_scores, labeler.policy.display_values
    )
    assert labeled.confidence == pytest.approx(float(expected))


def test_another_models_policy_is_left_out_and_said(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage.put(str(bundle_folder / "policy.json"), policy_for("f" * 12))
    with caplog.at_level(logging.WARNING):
        assert segpipe.load_model(str(bundle_folder), "cpu").policy is None
    assert "until then nothing is accepted" in caplog.text


def test_a_policy_of_twelve_digits_holds_with_a_warning_and_one_of_all_without(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = segpipe.load_model(str(bundle_folder), "cpu")
    for digest, warned in ((None, True), (plain.digest, False)):
        caplog.clear()
        storage.put(str(bundle_folder / "policy.json"), policy_for(plain.model_id, digest))
        with caplog.at_level(logging.WARNING):
            assert segpipe.load_model(str(bundle_folder), "cpu").policy is not None
        assert ("names its model by 12 digits only" in caplog.text) == warned


def test_the_policy_of_a_twin_model_with_the_same_digits_is_left_out(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_id = segpipe.load_model(str(bundle_folder), "cpu").model_id
    storage.put(str(bundle_folder / "policy.json"), policy_for(model_id, model_id + "0" * 52))
    with caplog.at_level(logging.WARNING):
        assert segpipe.load_model(str(bundle_folder), "cpu").policy is None
    assert "only begins with the same digits" in caplog.text


@pytest.mark.parametrize(
    ("computed", "holds", "said"),
    [
        ({}, True, ""),
        ({"device": "cpu", "precision": "float32"}, True, ""),
        (
            {"device": "cuda", "precision": "float32"},
            True,
            "was calibrated on a cuda device, and this is a cpu",
        ),
        ({"device": "cpu", "precision": "bfloat16"}, False, "until then nothing is accepted"),
    ],
)
@pytest.mark.usefixtures("float32")
def test_a_policy_holds_for_scores_of_its_own_precision(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture, computed: dict[str, Any], holds: bool, said: str
) -> None:
    plain = segpipe.load_model(str(bundle_folder), "cpu")
    policy = policy_for(plain.model_id, plain.digest, **computed)
    storage.put(str(bundle_folder / "policy.json"), policy)
    with caplog.at_level(logging.WARNING):
        assert (segpipe.load_model(str(bundle_folder), "cpu").policy is not None) == holds
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_a_damaged_policy_stops_the_run(bundle_folder: Path) -> None:
    (bundle_folder / "policy.json").write_text("{}")
    with pytest.raises(PolicyError):
        segpipe.load_model(str(bundle_folder), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_asking_for_a_missing_device_says_what_to_do(trained_model: str) -> None:
    with pytest.raises(ModelError, match="no CUDA device here: use --device cpu or auto"):
        segpipe.load_model(trained_model, "cuda")


WRONG = {
    "no channels": np.zeros((4, 5), np.uint8),
    "four channels": np.zeros((4, 5, 4), np.uint8),
    "float": np.zeros((4, 5, 3), np.float32),
    "sixteen bits": np.zeros((4, 5, 3), np.uint16),
    "empty": np.zeros((0, 5, 3), np.uint8),
    "a path as text": "photo.jpg",
    "a path": Path("photo.jpg"),
    "bytes": b"\xff\xd8\xff",
    "none": None,
    "a list": [[[1, 2, 3]]],
    "a Pillow image of floats": Image.new("F", (5, 4)),
    "a Pillow image without a pixel": Image.new("RGB", (5, 0)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_image_is_one_clear_line(labeler: Labeler, wrong: object) -> None:
    with pytest.raises(ImageError, match=r"^image 1\b") as raised:
        labeler.label([noise_image(4, 4), wrong])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("photo.jpg", "label takes a list of images, not of type str: give HxWx3 uint8"),
        (Path("photo.jpg"), "label takes a list of images, not of type PosixPath"),
        (None, "label takes a list of images, not of type NoneType"),
        (Image.new("RGB", (5, 4)), "label takes a list of images, not of type Image"),
        (np.zeros((4, 5, 3), np.uint8), r"label takes a list of images: give \[image\] for uint8 of shape"),
    ],
)
def test_what_is_no_list_of_images_is_one_clear_line(labeler: Labeler, given: object, said: str) -> None:
    with pytest.raises(ImageError, match=f"^{said}"):
        labeler.label(given)


def assert_same(found: list[Labeled], expected: list[Labeled]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.mask, other.mask)
        assert one.discriminator_score == other.discriminator_score


def test_any_iterable_of_images_is_taken_a_batch_at_a_time(labeler: Labeler) -> None:
    images, taken, seen = [noise_image(40, 60, seed) for seed in range(11)], [], []

    def frames() -> Iterator[np.ndarray]:
        for image in images:
            taken.append(image)
            yield image

    watched = replace(labeler, batch_size=4)
    judge = Labeler.judge

    def counted(self: Labeler, prepared: list[np.ndarray]) -> list[JudgedMask]:
        seen.append(len(taken))
        return judge(self, prepared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeler, "judge", counted)
        found = watched.label(frames())
    assert seen == [4, 8, 11]
    assert_same(found, watched.label(images))
    assert_same(labeler.label(np.stack(images)), labeler.label(images))
    assert_same(labeler.label(tuple(images[:2])), labeler.label(images[:2]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_a_pillow_image_is_labelled_as_its_file_is(labeler: Labeler, mode: str) -> None:
    image = Image.fromarray(noise_image(40, 60)).convert(mode)
    (found,) = labeler.label([image])
    assert_same([found], labeler.label([np.asarray(image.convert("RGB"))]))


def test_a_pillow_image_is_turned_as_its_exif_says(labeler: Labeler, encoded: Callable[..., bytes]) -> None:
    pixels, exif = noise_image(40, 60), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown turned by 90 degrees clockwise
    with Image.open(BytesIO(encoded(pixels, "PNG", exif=exif))) as image:
        (found,) = labeler.label([image])
    assert_same([found], labeler.label([np.rot90(pixels, -1)]))


def test_a_pillow_image_whose_file_is_damaged_is_named(
    labeler: Labeler, encoded: Callable[..., bytes]
) -> None:
    data = encoded(noise_image(40, 60), "JPEG")
    with (
        Image.open(BytesIO(data[: len(data) // 2])) as image,
        pytest.raises(ImageError, match="image 0: damaged"),
    ):
        labeler.label([image])


@pytest.fixture
def ranged(labeler: Labeler) -> Labeler:
    """The same networks, with a range of 100 to 1120: four values a grey level."""
    spec = labeler.bundle.spec.model_copy(update={"image_range": (100.0, 1120.0)})
    card = labeler.bundle.card.model_copy(update={"spec": spec})
    return replace(labeler, bundle=replace(labeler.bundle, card=card))


def test_arrays_of_16_bits_are_brought_to_the_range(labeler: Labeler, ranged: Labeler) -> None:
    shown = noise_image(40, 60)
    colour, grey = (shown * np.uint16(4) + np.uint16(100) for shown in (shown, shown[..., 0]))
    assert_same(ranged.label([colour]), labeler.label([shown]))
    as_shown = labeler.label([np.repeat(shown[..., :1], 3, axis=2)])
    assert_same(ranged.label([grey]), as_shown)
    for mode in ("I;16", "I", "F"):
        image = Image.fromarray(grey.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
        assert image.mode == mode
        assert_same(ranged.label([image]), as_shown)
    assert_same(ranged.label([Image.fromarray(shown)]), ranged.label([shown]))
    assert_same(
        ranged.label([np.full((40, 60, 3), 90, np.uint8)]), labeler.label([np.zeros((40, 60, 3), np.uint8)])
    )
    assert_same(ranged.label_pixels([shown]), labeler.label([shown]))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.float64),
        np.zeros((4, 5), np.int32),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint16),
        np.zeros((0, 5), np.uint16),
        Image.new("RGB", (5, 0)),
    ],
    ids=["float32", "float64", "int32", "8 bits grey", "4 channels", "no row", "no row, Pillow"],
)
def test_what_a_model_with_a_range_does_not_take_is_one_clear_line(ranged: Labeler, wrong: object) -> None:
    with pytest.raises(ImageError, match=r"^image 0 is .*: give HxWx3 uint8") as raised:
        ranged.label([wrong])
    assert "\n" not in str(raised.value)


def test_16_bits_without_a_range_say_what_is_missing(labeler: Labeler) -> None:
    for wrong in (np.zeros((4, 5), np.uint16), np.zeros((4, 5, 3), np.uint16)):
        with pytest.raises(ImageError, match=r"the model knows no range .*train with a range"):
            labeler.label([wrong])
    with pytest.raises(ImageError, match=r'pixel type F has no known value range; .*"image": \{"range"'):
        labeler.label([Image.new("F", (5, 4))])
