"""A small deterministic labeler and buckets of small images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brightness import MODEL_ID, Labeled, by_brightness
from plain_policy import make_policy as make_calibrated

from segpipe import storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import Policy
from segpipe.config import LabelSettings


@dataclass
class BrightnessLabeler:
    """Class 1 where a pixel is bright; the score is the mean brightness, 0 to 1."""

    model_id: str = MODEL_ID
    policy: Policy | None = None
    before: Callable[[list[np.ndarray]], None] = lambda images: None
    classes: tuple[str, ...] = ("dark", "bright")
    digest: str | None = None
    seen: list[str] = field(default_factory=list)

    image_range: tuple[float, float] | None = None
    tiling: None = None
    smallest_decode: tuple[int, int] = (1_000_000, 1_000_000)
    pixels_at_once: int | None = None
    computed_at_once: int = 2
    judged_at_once: int = 2
    gathered_images: int | None = None

    def device_threads(self) -> AbstractContextManager[ThreadPoolExecutor]:
        return ThreadPoolExecutor(self.judged_at_once)

    def compute_threads(self) -> AbstractContextManager[ThreadPoolExecutor]:
        return ThreadPoolExecutor(self.computed_at_once)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def judge(self, prepared: list[np.ndarray]) -> list[np.ndarray]:
        self.before(prepared)
        self.seen.extend(hashlib.sha256(image.tobytes()).hexdigest() for image in prepared)
        return prepared

    def judge_at_size(self, prepared: list[np.ndarray], sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        assert [image.shape[:2] for image in prepared] == sizes
        return self.judge(prepared)

    def finish(self, judged: np.ndarray, height: int, width: int) -> Labeled:
        return by_brightness(judged)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(tmp_path / "in")


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def make_labeler() -> type[BrightnessLabeler]:
    """(model_id, policy, before) -> labeler; before(images) may raise, seen lists what was labelled."""
    return BrightnessLabeler


@pytest.fixture
def settings() -> LabelSettings:
    """Small shards and batches, so that a few images cross their borders."""
    return LabelSettings(shard_images=4, batch_images=3, fetch_threads=3, claim_seconds=20)


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    """(threshold, model_id, **fields) -> policy whose calibration scores are spread evenly over 0 to 1."""

    def make(threshold: float | None, model_id: str = MODEL_ID, **fields: Any) -> Policy:
        scores, ious, created_at = np.linspace(0, 1, 200), np.ones(200), "2026-11-23T00:00:00+00:00"
        policy = make_calibrated(scores, ious, model_id, BadFraction(0.5, 0.1), 0.9, "f" * 64, created_at)
        return replace(policy, policy_id="p1", threshold=threshold, **fields)

    return make


@pytest.fixture
def picture(encoded: Callable[..., bytes]) -> Callable[..., bytes]:
    """(value, height=5, width=6) -> PNG bytes: one half `value`, the other `value` / 2."""

    def make(value: int, height: int = 5, width: int = 6) -> bytes:
        pixels = np.full((height, width, 3), value, np.uint8)
        pixels[:, width // 2 :] //= 2
        return encoded(pixels)

    return make


@pytest.fixture
def fill(picture: Callable[..., bytes]) -> Callable[..., list[str]]:
    """(source, n) -> the URIs of n different pictures put there."""

    def put(source: str, n: int) -> list[str]:
        uris = [storage.join(source, f"day {number % 3}/bild-ü{number:03d}.png") for number in range(n)]
        for number, uri in enumerate(uris):
            storage.put(uri, picture(255 - 5 * number, 5 + number % 2, 6))
        return uris

    return put
