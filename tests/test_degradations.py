"""Degraded images keep shape, type and content, and get worse with the strength."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.scenes import draw_scene
from segpipe import degradations
from segpipe.degradations import TRAINING_DEGRADATIONS, Degradation, degrade, degrade_in_training


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return draw_scene(np.random.default_rng(3), 64, 96)[0]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("degradation", TRAINING_DEGRADATIONS, ids=lambda function: function.__name__)
class TestEveryDegradation:
    def test_strength_zero_keeps_the_image(self, degradation: Degradation, scene: np.ndarray) -> None:
        kept = degradation(scene, 0.0, np.random.default_rng(0))
        # JPEG at its best quality still rounds, and a speck of dirt is a pixel; no other may touch one.
        allowed = {degradations.jpeg: 5.0, degradations.dirt: 0.1}
        assert _distance(kept, scene) <= allowed.get(degradation, 0.0)

    def test_damage_grows_with_strength(self, degradation: Degradation, scene: np.ndarray) -> None:
        damage = [
            np.mean([_distance(degradation(scene, s, np.random.default_rng(n)), scene) for n in range(8)])
            for s in (0.1, 0.5, 1.0)
        ]
        assert damage[0] < damage[1] < damage[2]
        assert damage[2] > (4.0 if degradation is degradations.dirt else 8.0), "dirt hides a part only"

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
def test_degrading_takes_any_size(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    for degraded in (degrade(image, rng), degrade_in_training(image, rng)):
        assert degraded.shape == image.shape
        assert degraded.dtype == np.uint8
    assert np.array_equal(image, before)


@pytest.mark.parametrize("degradation", TRAINING_DEGRADATIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_the_smallest_images_can_be_degraded(degradation: Degradation, size: tuple[int, int]) -> None:
    degraded = degradation(np.full((*size, 3), 90, np.uint8), 1.0, np.random.default_rng(0))
    assert degraded.shape == (*size, 3)
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


def test_motion_blur_smears_along_one_axis_only() -> None:
    dot = np.zeros((100, 100, 3), np.uint8)
    dot[50, 50] = 240
    extents = set()
    for seed in range(10):
        rows, columns = np.nonzero(degradations.motion_blur(dot, 1.0, np.random.default_rng(seed))[..., 0])
        extents.add((int(np.ptp(rows)), int(np.ptp(columns))))
    assert extents == {(6, 0), (0, 6)}


def test_impulse_noise_turns_a_quarter_of_the_pixels_black_or_white() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    struck = degradations.impulse_noise(grey, 1.0, np.random.default_rng(0))
    values, counts = np.unique(struck.reshape(-1, 3), axis=0, return_counts=True)
    assert values.tolist() == [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    assert (counts / 40_000).tolist() == pytest.approx([0.125, 0.75, 0.125], abs=0.01)


def test_overexposure_multiplies_the_light_and_loses_the_highlights() -> None:
    image = np.array([[[10, 40, 200]]], np.uint8)
    gains = [
        degradations.overexposure(image, 1.0, np.random.default_rng(seed))[0, 0] / 10 for seed in range(50)
    ]
    assert 2.0 <= min(gain[0] for gain in gains) < 2.3
    assert 3.2 < max(gain[0] for gain in gains) <= 3.5
    assert all(gain[2] == 25.5 for gain in gains)


def test_dirt_is_a_few_plain_rectangles() -> None:
    scene = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for seed in range(20):
        dirty = degradations.dirt(scene, 1.0, np.random.default_rng(seed))
        hidden = (dirty != scene).any(axis=2)
        colours = np.unique(dirty[hidden], axis=0)
        assert 1 <= len(colours) <= 6
        for colour in colours:
            rows, columns = np.nonzero(hidden & (dirty == colour).all(axis=2))
            assert np.ptp(rows) <= 20
            assert np.ptp(columns) <= 30


def test_a_judge_sees_every_kind_of_damage_at_every_strength_and_now_and_then_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[list[tuple[str, float]]] = []

    def recorded(name: str) -> Degradation:
        def note(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
            drawn[-1].append((name, strength))
            return image

        return note

    names = [degradation.__name__ for degradation in TRAINING_DEGRADATIONS]
    monkeypatch.setattr(degradations, "TRAINING_DEGRADATIONS", tuple(recorded(name) for name in names))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        drawn.append([])
        degrade_in_training(np.zeros((2, 2, 3), np.uint8), rng)
    every = [damage for image in drawn for damage in image]
    assert {name for name, _ in every} == set(names)
    assert min(strength for _, strength in every) < 0.12
    assert max(strength for _, strength in every) > 0.98
    assert {len(image) for image in drawn} == {1, 2}
    assert np.mean([len(image) == 2 for image in drawn]) == pytest.approx(0.2, abs=0.03)
