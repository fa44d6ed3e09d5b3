"""What `load_model(...).label(...)` promises (contract C9)."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import segpipe
from segpipe import storage
from segpipe.confidence.policy import make_policy, to_json
from segpipe.errors import ImageError, ModelError, PolicyError
from segpipe.models import inference
from segpipe.models.inference import full_size_mask
from segpipe.models.labeler import Labeler


@pytest.fixture(scope="module")
def labeler(trained_model: str) -> Labeler:
    return segpipe.load_model(trained_model, "cpu")


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (31, 33), (96, 128), (700, 500)])
def test_masks_have_each_images_own_size_and_known_classes(labeler: Labeler, size: tuple[int, int]) -> None:
    (labeled,) = labeler.label([noise_image(*size)])
    assert labeled.mask.shape == size
    assert labeled.mask.dtype == np.uint8
    assert labeled.mask.max() < len(labeler.classes)
    assert 0 <= labeled.confidence <= 1
    assert np.isfinite(labeled.discriminator_score)


def test_an_image_gets_the_same_mask_and_score_in_any_company(labeler: Labeler) -> None:
    images = [noise_image(40 + 7 * seed, 60, seed) for seed in range(11)]
    together = labeler.label(images)
    for image, labeled in zip(images, together, strict=True):
        (alone,) = labeler.label([image])
        assert np.mean(alone.mask != labeled.mask) < 0.001
        assert alone.discriminator_score == pytest.approx(labeled.discriminator_score, abs=1e-4)


def test_fractions_count_the_mask_and_confidences_are_there_for_its_classes_only(labeler: Labeler) -> None:
    for labeled in labeler.label([noise_image(64, 64), np.zeros((64, 64, 3), np.uint8)]):
        present = np.isin(np.arange(len(labeler.classes)), labeled.mask)
        assert labeled.class_fractions.sum() == pytest.approx(1)
        assert np.array_equal(labeled.class_fractions > 0, present)
        assert np.array_equal(~np.isnan(labeled.class_confidences), present)
        assert ((labeled.class_confidences[present] >= 0) & (labeled.class_confidences[present] <= 1)).all()


def test_no_images_give_no_masks(labeler: Labeler) -> None:
    assert labeler.label([]) == []


def test_a_large_mask_made_in_parts_is_the_mask_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 12, 16, generator=torch.Generator().manual_seed(1))
    whole = functional.interpolate(logits[None], size=(90, 110), mode="bilinear")[0].argmax(0).numpy()
    for at_once in (1, 90 * 110 * 2, 90 * 110 * 100):
        monkeypatch.setattr(inference, "RAISED_AT_ONCE", at_once)
        assert np.array_equal(full_size_mask(logits, (90, 110)), whole)


def policy_for(model_id: str) -> bytes:
    scores = np.linspace(-3, 3, 200)
    policy = make_policy(
        scores, 0.5 + scores / 6, model_id, 0.3, 0.2, 0.9, "0" * 64, "2026-01-01T00:00:00+00:00"
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


def test_a_damaged_policy_stops_the_run(bundle_folder: Path) -> None:
    (bundle_folder / "policy.json").write_text("{}")
    with pytest.raises(PolicyError):
        segpipe.load_model(str(bundle_folder), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_asking_for_a_missing_device_says_what_to_do(trained_model: str) -> None:
    with pytest.raises(ModelError, match="no CUDA device here: use --device cpu or auto"):
        segpipe.load_model(trained_model, "cuda")


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_one_clear_line(labeler: Labeler, wrong: np.ndarray) -> None:
    with pytest.raises(ImageError, match="give HxWx3 uint8"):
        labeler.label([noise_image(4, 4), wrong])
