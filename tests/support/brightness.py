"""A small labeler that other processes can load: class 1 where a pixel is bright."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segpipe.confidence.policy import Policy, display_confidence, from_json
from segpipe.labeling.engines.work import ServedModel

MODEL_ID = "aaaaaaaaaaaa"


@dataclass(frozen=True)
class Labeled:
    """What a labeler gives for one image."""

    mask: np.ndarray
    confidence: float
    discriminator_score: float
    class_fractions: np.ndarray
    class_confidences: np.ndarray
    confidence_map: np.ndarray


def by_brightness(image: np.ndarray) -> Labeled:
    """An image HxWx3, labelled; the score, and the confidence, is the mean brightness, 0 to 1."""
    mask = (image.mean(axis=2) > 127).astype(np.uint8)
    fractions = np.bincount(mask.ravel(), minlength=2) / mask.size
    score = float(image.mean() / 255)
    by_class = np.where(fractions > 0, score, np.nan)
    confidence_map = (image.mean(axis=2) / 255).astype(np.float32)[::2, ::2]
    return Labeled(mask, score, score, fractions, by_class, confidence_map)


@dataclass
class Brightness:
    """The score is the mean brightness, 0 to 1. folder: where files say what is to go wrong; mark: a number
    whose bits turn a mask's first pixels over."""

    policy: Policy | None = None
    folder: str | None = None
    mark: int = 0
    model_id: str = MODEL_ID
    classes: tuple[str, ...] = ("dark", "bright")
    digest: str | None = None
    image_range: tuple[float, float] | None = None
    tiling: None = None
    smallest_decode: tuple[int, int] = (1_000_000, 1_000_000)
    pixels_at_once: int | None = None
    computed_at_once: int = 1
    judged_at_once: int = 1
    gathered_images: None = None

    def compute_threads(self) -> AbstractContextManager[ThreadPoolExecutor]:
        return ThreadPoolExecutor(self.computed_at_once)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def judge(self, prepared: list[np.ndarray]) -> list[np.ndarray]:
        if self.folder is not None:
            _misbehave(Path(self.folder))
        return prepared

    def finish(self, judged: np.ndarray, height: int, width: int) -> Labeled:
        labeled = _marked(by_brightness(judged), self.mark)
        if self.policy is None:
            return labeled
        return replace(labeled, confidence=display_confidence(self.policy, labeled.discriminator_score))


def _marked(labeled: Labeled, mark: int) -> Labeled:
    pixels = labeled.mask.copy()
    bits = np.array([mark >> place & 1 for place in range(mark.bit_length())], np.uint8)
    pixels.reshape(-1)[: bits.size] ^= bits
    return replace(labeled, mask=pixels)


def _misbehave(folder: Path) -> None:
    """In the middle of a shard: what the files of the folder say, each for whoever takes it first."""
    if any(folder.glob(f"taken-broken-*-{os.getpid()}")):
        raise RuntimeError("device lost for good")
    for kind in ("kill", "stop", "broken", "fail", "slow"):
        for order in sorted(folder.glob(f"{kind}-*")):
            if kind == "slow":
                time.sleep(0.05)  # so that a signal meets the work under way
                continue
            try:
                order.rename(folder / f"taken-{order.name}-{os.getpid()}")
            except FileNotFoundError:
                continue
            if kind in ("broken", "fail"):
                raise RuntimeError("device lost")
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


def load(url: str, digest: str | None, policy: str | None, device: str) -> Brightness:
    """For workers, which leave their process ids in url, the folder of orders."""
    assert (digest, device) == (None, "cpu")
    Path(url, f"worker-{os.getpid()}").touch()
    return Brightness(None if policy is None else from_json(policy), url)


def load_marked(url: str, digest: str | None, policy: str | None, device: str) -> Brightness:
    """As load; its masks tell the process that made them, so that one which came late shows."""
    return replace(load(url, digest, policy, device), mark=os.getpid())


def served(folder: Path) -> ServedModel:
    """The labeler for workers, which look into the folder for orders."""
    return ServedModel(str(folder), load)
