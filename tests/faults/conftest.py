"""Real labelling processes on a real S3 server behind a proxy that a test commands."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image
from s3_bucket import Bucket
from s3_proxy import S3Proxy

ROOT = Path(__file__).resolve().parents[2]
PROCESS_SECONDS = 240


@dataclass
class Labelling:
    """Starts `segpipe label` as processes of their own, which see the bucket through the proxy."""

    bucket: Bucket
    model: str
    endpoint: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, output: str, run_id: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "segpipe", "label", self.bucket.source]
        command += [f"s3://{self.bucket.name}/{output}", "--model", self.model, "--run-id", run_id, "--json"]
        command += ["--shard-images", "4", "--batch-images", "2", "--claim-seconds", "4", "--device", "cpu"]
        own = {"PYTHONPATH": str(ROOT), "AWS_ENDPOINT_URL": self.endpoint, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | own | environment,
        )
        self.started.append(process)
        return process

    def run(self, output: str, run_id: str, *options: str, **environment: str) -> dict[str, Any]:
        """Run to the end, which is to be a good one; the summary."""
        process = self.start(output, run_id, *options, **environment)
        said, complaints = process.communicate(timeout=PROCESS_SECONDS)
        assert process.returncode == 0, complaints
        return json.loads(said)


def wait_until(reached: Callable[[], object], what: str, seconds: float = PROCESS_SECONDS) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """A suite started in the background ignores SIGINT, and so would the processes it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def waiting() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def proxy(s3_server: str) -> Iterator[S3Proxy]:
    proxy = S3Proxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(s3_server: str) -> Bucket:
    """24 pictures of 32x48 pixels."""
    import boto3

    client, name = boto3.client("s3", endpoint_url=s3_server), f"bucket-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    images = [f"raw/day {number % 3}/bild-ü{number:03d}.png" for number in range(24)]
    for number, key in enumerate(images):
        client.put_object(Bucket=name, Key=key, Body=picture(number))
    return Bucket(client, name, sorted(images))


def picture(seed: int) -> bytes:
    """A PNG of noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small model with random weights and no policy."""
    from random_model import write_random_model  # imports torch

    return write_random_model(str(tmp_path_factory.mktemp("model")))


@pytest.fixture
def labelling(bucket: Bucket, proxy: S3Proxy, random_model: str) -> Iterator[Labelling]:
    labelling = Labelling(bucket, random_model, proxy.url)
    yield labelling
    for process in labelling.started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
