"""Damage that no judge is trained on, for benchmarks alone; the signature is segpipe.degradations'."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def mosaic(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blocks of one colour, 2.5% to 5% of the shorter side wide at full strength."""
    height, width = image.shape[:2]
    block = 1 + round(rng.uniform(0.025, 0.05) * strength * min(height, width))
    small = Image.fromarray(image).resize((-(-width // block), -(-height // block)), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.NEAREST))


def lost_lines(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Up to half of the lines, each replaced by the one above it, round the edge, moved sideways."""
    worse = image.copy()
    for line in np.flatnonzero(rng.random(len(image)) < 0.5 * strength):
        worse[line] = np.roll(worse[line - 1], int(rng.integers(1, 9)), axis=0)
    return worse


def glare(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A lamp in the picture: white at its middle, gone at about half of the image's diagonal."""
    height, width = image.shape[:2]
    down, right = np.ogrid[:height, :width]
    distance = np.hypot(down - rng.integers(height), right - rng.integers(width)) / np.hypot(height, width)
    light = (strength * np.exp(-((distance / 0.25) ** 2)))[:, :, None]
    return np.rint(image * (1 - light) + 255 * light).astype(np.uint8)


def rain(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Up to one light, slanted streak per 150 pixels, a twelfth of the height long."""
    height, width = image.shape[:2]
    drawn = Image.fromarray(image)
    pen, slant = ImageDraw.Draw(drawn), rng.uniform(-0.5, 0.5)
    length = max(2, height // 12)
    for _ in range(round(strength * height * width / 150)):
        x, y = float(rng.uniform(0, width)), float(rng.uniform(-length, height))
        grey = int(rng.integers(180, 240))
        pen.line([(x, y), (x + slant * length, y + length)], fill=(grey, grey, grey))
    return np.asarray(Image.blend(Image.fromarray(image), drawn, 0.7))


UNSEEN_DAMAGE = (mosaic, lost_lines, glare, rain)


def damage_unseen(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of them, drawn uniformly, at a strength drawn uniformly from [0.4, 1], as segpipe's degrade."""
    return UNSEEN_DAMAGE[rng.integers(len(UNSEEN_DAMAGE))](image, rng.uniform(0.4, 1.0), rng)
