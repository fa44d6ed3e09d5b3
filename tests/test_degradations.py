"""Degraded images keep shape, type and content, and get worse with the strength."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe import degradations
from segpipe.degradations import DEGRADATIONS, Degradation, degrade
from segpipe.scenes import draw_scene


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return draw_scene(np.random.default_rng(3), 64, 96)[0]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda function: function.__name__)
class TestEveryDegradation:
    def test_strength_zero_keeps_the_image(self, degradation: Degradation, scene: np.ndarray) -> None:
        kept = degradation(scene, 0.0, np.random.default_rng(0))
        # JPEG at its best quality still rounds; all others must not touch a pixel.
        assert _distance(kept, scene) <= (5.0 if degradation is degradations.jpeg else 0.0)

    def test_damage_grows_with_strength(self, degradation: Degradation, scene: np.ndarray) -> None:
        damage = [_distance(degradation(scene, s, np.random.default_rng(1)), scene) for s in (0.1, 0.5, 1.0)]
        assert damage[0] < damage[1] < damage[2]
        assert damage[2] > 8.0

    def test_same_generator_state_gives_the_same_image(
        self, degradation: Degradation, scene: np.ndarray
    ) -> None:
        first, second = (degradation(scene, 0.8, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(first, second)

    def test_input_is_untouched_and_output_has_its_shape(self, degradation: Degradation) -> None:
        image = np.random.default_rng(0).integers(0, 256, (17, 31, 3), dtype=np.uint8)
        before = image.copy()
        degraded = degradation(image, 1.0, np.random.default_rng(0))
        assert degraded.shape == (17, 31, 3)
        assert degraded.dtype == np.uint8
        assert np.array_equal(image, before)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_degrade_takes_any_size(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    degraded = degrade(image, rng)
    assert degraded.shape == image.shape
    assert degraded.dtype == np.uint8


def test_degrade_draws_every_kind(scene: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    looks = [degrade(scene, rng).astype(float) for _ in range(80)]
    brightness = np.array([look.mean() for look in looks])
    detail = np.array([np.abs(np.diff(look, axis=1)).mean() for look in looks])
    cast = np.array([np.ptp(look.mean(axis=(0, 1)) - scene.mean(axis=(0, 1))) for look in looks])
    original = np.abs(np.diff(scene.astype(float), axis=1)).mean()
    assert (brightness < 0.65 * scene.mean()).any(), "dark"
    assert (brightness > 1.25 * scene.mean()).any(), "fog"
    assert (detail > 1.5 * original).any(), "noise"
    assert ((detail < 0.6 * original) & (abs(brightness - scene.mean()) < 5)).any(), "blur, JPEG"
    assert (cast > 30).any(), "white balance"


def test_noise_has_the_promised_spread() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = degradations.noise(grey, 0.5, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(25.0, rel=0.03)
    assert noisy.mean() == pytest.approx(128.0, abs=1.0)


def test_dark_leaves_seven_percent_of_the_light() -> None:
    white = np.full((100, 100, 3), 250, np.uint8)
    assert degradations.dark(white, 1.0, np.random.default_rng(0)).mean() == pytest.approx(17.5, abs=0.5)


def test_fog_lightens_what_is_dark_and_takes_the_contrast() -> None:
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 200
    foggy = degradations.fog(stripes, 1.0, np.random.default_rng(0)).astype(float)
    contrast = np.abs(np.diff(foggy, axis=1)).mean(axis=(1, 2)) / 200
    assert foggy[:, 1::2].mean() > 90
    assert contrast.max() < 0.6
    assert contrast[:10].mean() < contrast[-10:].mean(), "denser at the top"


def test_white_balance_multiplies_each_channel_by_one_gain() -> None:
    image = np.random.default_rng(0).integers(20, 100, (30, 30, 3), dtype=np.uint8)
    shifted = degradations.white_balance(image, 1.0, np.random.default_rng(2))
    for channel in range(3):
        unclipped = shifted[..., channel] < 255
        gain = shifted[..., channel][unclipped] / image[..., channel][unclipped]
        assert 1 / 1.65 < np.median(gain) < 1.65
        assert np.allclose(gain, np.median(gain), atol=0.03)


def test_blur_looks_alike_at_any_size() -> None:
    """A step edge spreads over the same share of the width in a small and a large image."""

    def spread(size: int) -> float:
        step = np.zeros((size, size, 3), np.uint8)
        step[:, size // 2 :] = 255
        row = degradations.blur(step, 1.0, np.random.default_rng(0))[size // 2, :, 0]
        return float(((row > 25) & (row < 230)).sum() / size)

    assert spread(400) == pytest.approx(spread(100), rel=0.25)
