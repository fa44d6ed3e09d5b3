"""One Ray for all tests, and whole runs by either engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brightness import MODEL_ID, Brightness, served
from PIL import Image
from plain_policy import make_policy

from segpipe import storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import Policy
from segpipe.config import LabelSettings
from segpipe.labeling.run import label_source
from segpipe.labeling.totals import RunSummary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[Any]:
    """Ray on this machine, with room for three workers."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_worker_niceness", "0")  # on a busy machine the tests would wait for long
        environment.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=3,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )
        yield ray
        ray.shutdown()


@dataclass(frozen=True)
class Bench:
    """A bucket of pictures, and runs over it by one engine; orders: a folder that workers look into."""

    source: str
    output: str
    orders: Path
    settings: LabelSettings
    uris: list[str]

    def label(self, policy: Policy | None = None, run_id: str | None = "r1", **changes: Any) -> RunSummary:
        """Label what is new, with such changes of the settings."""
        settings = self.settings.model_copy(update=changes)
        return label_source(
            self.source,
            self.output,
            Brightness(policy, str(self.orders)),
            settings,
            run_id,
            served=served(self.orders),
        )


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """(engine, images=24) -> a bench."""

    def make(engine: str, images: int = 24) -> Bench:
        source, orders = tmp_path / "in", tmp_path / "orders"
        source.mkdir()
        orders.mkdir()
        for number in range(images):
            Image.fromarray(_picture(number)).save(source / f"{number:03d}.png")
        uris = [storage.normalise(str(path)) for path in sorted(source.iterdir())]
        workers = {"workers": "2"} if engine == "ray" else {}
        settings = LabelSettings(
            shard_images=4, batch_images=2, fetch_threads=2, claim_seconds=12, engine=engine, **workers
        )
        return Bench(str(source), str(tmp_path / "out"), orders, settings, uris)

    return make


def _picture(number: int) -> np.ndarray:
    pixels = np.full((12, 16, 3), 250 - 5 * number, np.uint8)
    pixels[:, 8:] //= 2
    return pixels


@pytest.fixture(params=["local", "ray"])
def either(request: pytest.FixtureRequest, bench: Callable[..., Bench]) -> Bench:
    """A bench of each engine."""
    if request.param == "ray":
        request.getfixturevalue("shared_ray")
    return bench(request.param)


@pytest.fixture
def by_ray(shared_ray: Any, bench: Callable[..., Bench]) -> Bench:
    """A bench of the engine ray."""
    return bench("ray")


@pytest.fixture
def policy_with() -> Callable[..., Policy]:
    """(threshold, low, high) -> a policy whose calibration scores are spread from low to high."""

    def make(threshold: float, low: float = 0.0, high: float = 1.0) -> Policy:
        return make_policy(
            np.linspace(low, high, 200),
            np.ones(200),
            MODEL_ID,
            BadFraction(0.5, 0.1),
            0.9,
            "f" * 64,
            "2026-11-23T00:00:00+00:00",
            candidate_thresholds=[threshold],
        )

    return make
