"""Image degradations as cameras and transports cause them, for the demo, the benchmarks and training.

Every degradation takes an HxWx3 uint8 image, a strength in [0, 1] and a generator, and returns a new image of
the same shape and type; the mask of the image stays right. Strength 0 changes little or nothing, strength 1
leaves an image that a person still recognises but labels with effort.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Degradation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Sensor noise: Gaussian, independent per pixel and channel, standard deviation up to 50 grey levels."""
    return _to_uint8(image + rng.normal(0.0, 50.0 * strength, image.shape))


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Defocus and shake: Gaussian blur, radius up to 3.5% of the shorter side, less along one axis."""
    radius = 0.035 * strength * min(image.shape[:2])
    radii = rng.permutation([radius, radius * rng.uniform(0.4, 1.0)])
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur((radii[0], radii[1]))))


def dark(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Underexposure: down to 7% of the light, with the sensor's read noise that then shows."""
    exposed = image * (1.0 - 0.93 * strength)
    return _to_uint8(exposed + rng.normal(0.0, 4.0 * strength, image.shape))


def fog(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Fog: a patchy grey veil that hides up to about 90% of the contrast, densest at the top of the image."""
    height, width = image.shape[:2]
    patches = _smooth_noise(height, width, rng)
    fade = np.linspace(1.0, 0.75, height)[:, None]
    opacity = np.clip(strength * (0.78 * fade + 0.15 * patches), 0.0, 1.0)[:, :, None]
    return _to_uint8(image * (1.0 - opacity) + rng.uniform(165.0, 215.0) * opacity)


def jpeg(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Lossy transport: down to half the size and JPEG quality 5, chroma subsampled at random."""
    height, width = image.shape[:2]
    scale = 1.0 - 0.5 * strength
    small = Image.fromarray(image).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=round(95 - 90 * strength), subsampling=int(rng.integers(3)))
    return np.array(Image.open(buffer).resize((width, height), Image.Resampling.BILINEAR))


def white_balance(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Wrong white balance: each channel is multiplied by its own gain, up to a factor of 1.6 either way."""
    gains = np.exp(rng.choice([-1.0, 1.0], 3) * rng.uniform(0.5, 1.0, 3) * strength * np.log(1.6))
    return _to_uint8(image * gains)


def motion_blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A moving camera: the mean along a horizontal or vertical path of up to 6% of the image's side."""
    axis = int(rng.integers(2))
    steps = 1 + round(0.06 * strength * image.shape[axis])
    moved = (np.roll(image, step - steps // 2, axis=axis).astype(np.float32) for step in range(steps))
    return _to_uint8(sum(moved, start=np.zeros(image.shape, np.float32)) / steps)


def impulse_noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Dead and hot pixels, lost packets: up to 25% of the pixels turned black or white."""
    struck = rng.random(image.shape[:2]) < 0.25 * strength
    return np.where(struck[:, :, None], rng.choice([0, 255], (*image.shape[:2], 1)), image).astype(np.uint8)


def overexposure(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Too much light: 2 to 3.5 times at full strength, so that the highlights are lost."""
    return _to_uint8(image * (1.0 + rng.uniform(1.0, 2.5) * strength))


def dirt(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Dirt or an object before the lens: up to 6 plain rectangles, each at most a third of the sides."""
    worse = image.copy()
    height, width = image.shape[:2]
    for _ in range(1 + round(5 * strength * rng.random())):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        tall, wide = (1 + int(side / 3 * strength * rng.random()) for side in (height, width))
        worse[top : top + tall, left : left + wide] = rng.integers(256, size=3)
    return worse


DEGRADATIONS: tuple[Degradation, ...] = (noise, blur, dark, fog, jpeg, white_balance)
# A judge that has seen more kinds of damage than it is measured with copes better with kinds it has not seen.
TRAINING_DEGRADATIONS = (*DEGRADATIONS, motion_blur, impulse_noise, overexposure, dirt)
SECOND_DAMAGE_SHARE = 0.2


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one degradation, drawn uniformly, at a strength drawn uniformly from [0.4, 1]."""
    degradation = DEGRADATIONS[rng.integers(len(DEGRADATIONS))]
    return degradation(image, rng.uniform(0.4, 1.0), rng)


def degrade_in_training(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of more kinds of degradation at any strength, now and then two: what a judge should have seen."""
    kinds = rng.integers(len(TRAINING_DEGRADATIONS), size=1 + int(rng.random() < SECOND_DAMAGE_SHARE))
    for kind in kinds:
        image = TRAINING_DEGRADATIONS[kind](image, rng.uniform(0.1, 1.0), rng)
    return image


def _smooth_noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """HxW noise in [-1, 1] that changes over about a quarter of the image."""
    coarse = Image.fromarray(rng.uniform(-1.0, 1.0, (4, 5)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8)
