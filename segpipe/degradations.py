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


DEGRADATIONS: tuple[Degradation, ...] = (noise, blur, dark, fog, jpeg, white_balance)


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one degradation, drawn uniformly, at a strength drawn uniformly from [0.4, 1]."""
    degradation = DEGRADATIONS[rng.integers(len(DEGRADATIONS))]
    return degradation(image, rng.uniform(0.4, 1.0), rng)


def _smooth_noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """HxW noise in [-1, 1] that changes over about a quarter of the image."""
    coarse = Image.fromarray(rng.uniform(-1.0, 1.0, (4, 5)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8)
