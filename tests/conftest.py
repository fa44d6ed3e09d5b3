"""Fixtures shared by every test module; importing this pulls in neither torch nor prefect."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from segpipe.manifests.schema import Row

SERVER_START_SECONDS = 60
# A test must not depend on how fast the machine is.
settings.register_profile("segpipe", deadline=None)
settings.load_profile("segpipe")
ROW_DEFAULTS: dict[str, Any] = {
    "image_uri": "/bucket/a.jpg",
    "image_etag": "e1",
    "image_bytes": 10,
    "image_width": 4,
    "image_height": 3,
    "mask_uri": "/out/masks/m/a.jpg.png",
    "mask_sha256": "ab",
    "decision": "accepted",
    "reason": "confident",
    "confidence": 0.5,
    "discriminator_score": 1.0,
    "class_fractions": [0.75, 0.25],
    "class_confidences": [0.5, None],
    "audit": False,
    "inclusion_probability": 0.0,
    "model_id": "m",
    "policy_id": None,
    "run_id": "r",
    "shard": 0,
    "labeled_at": datetime(2026, 11, 23, 12, tzinfo=UTC),
    "error": None,
}


def pytest_configure() -> None:
    """Have each client read one certificate and not all: no test speaks to the world; Prefect asks early."""
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support/authority.pem")


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision also on a processor with bfloat16, for figures that are compared to the last digits."""
    monkeypatch.setattr("segpipe.models.device.has_bfloat16", lambda device: False)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real S3 server; the AWS_* environment points at it.

    SEGPIPE_TEST_S3_ENDPOINT names one that runs already, with the credentials in AWS_*; else moto is started.
    """
    if running := os.environ.get("SEGPIPE_TEST_S3_ENDPOINT"):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", running)
            yield running
        return
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "server.log"
    program = Path(__file__).parent / "support/atomic_moto.py"
    command = [sys.executable, str(program), "127.0.0.1", str(port)]
    with log.open("wb") as output, pytest.MonkeyPatch.context() as environment:
        few_keys_a_page = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": "10"}  # so that every listing has to page
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=few_keys_a_page)
        try:
            _wait_until_up(url, server, log)
            _point_aws_at(url, environment)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=10)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """An ephemeral Prefect server; flows run without the heartbeat thread, which costs a second each."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_SERVER_ANALYTICS_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    with (
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        ),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


@pytest.fixture
def s3_bucket(s3_server: str) -> str:
    """Name of a fresh, empty bucket on `s3_server`."""
    import boto3

    name = f"bucket-{uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["local", "memory", "s3"])
def storage_root(request: pytest.FixtureRequest) -> str:
    """URL of a fresh, existing, empty folder on each kind of storage in turn."""
    if request.param == "local":
        tmp_path: Path = request.getfixturevalue("tmp_path")
        return str(tmp_path)
    if request.param == "memory":
        root = f"memory://{uuid4().hex[:12]}"
        fsspec.filesystem("memory").makedirs(root)
        return root
    return f"s3://{request.getfixturevalue('s3_bucket')}"


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """A function (array or Pillow image, format="PNG", **save options) -> file bytes."""

    def encode(image: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        buffer = BytesIO()
        picture.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A row with the given values and defaults elsewhere."""
    return lambda **values: Row(**{**ROW_DEFAULTS, **values})


@pytest.fixture
def row_defaults() -> dict[str, Any]:
    """What `make_row` gives where nothing else is said."""
    return dict(ROW_DEFAULTS)


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A labelled data set of drawn scenes, 32x64 pixels: train 12, val 6, calibration 40 images."""
    from demo.scenes import write_labelled

    root = str(tmp_path_factory.mktemp("streets"))
    rng = np.random.default_rng(7)
    for split, n_images in (("train", 12), ("val", 6), ("calibration", 40)):
        write_labelled(root, split, n_images, 0, rng, height=32, width=64)
    return root


@pytest.fixture(scope="session")
def trained_model(streets: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model bundle trained for a few epochs on `streets`; tests that write into a bundle copy it first."""
    from segpipe.config import TrainSettings
    from segpipe.training.run import train

    model = str(tmp_path_factory.mktemp("models") / "streets")
    train(TrainSettings(data=streets, model=model, epochs=3, batch_size=4, device="cpu", seed=5))
    return model


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"the S3 test server at {url} did not start: {log.read_text()[-2000:]}")


def _point_aws_at(url: str, environment: pytest.MonkeyPatch) -> None:
    # The dummies are like no word of a path or message, since redaction hides them wherever they stand.
    environment.setenv("AWS_ENDPOINT_URL", url)
    environment.setenv("AWS_ACCESS_KEY_ID", "DUMMYACCESSKEYID0001")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "dummy-secret-access-value-0001")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        environment.delenv(name, raising=False)
