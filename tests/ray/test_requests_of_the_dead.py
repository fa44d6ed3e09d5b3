"""What a killed worker has sent may still arrive: nobody labels its shard before that can no longer be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
from PIL import Image
from s3_bucket import Bucket
from s3_proxy import Exchange, Request, S3Proxy, pass_on

from segpipe.config import LabelSettings

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
PROCESS_SECONDS = 240
HELD_SECONDS = 2.0  # less than is left of any lease of 6 s that is renewed every 1.5 s
DRIVER = """
import sys
from brightness import Brightness, load_marked
from segpipe.config import LabelSettings
from segpipe.labeling.engines.work import ServedModel
from segpipe.labeling.run import label_source
source, output, orders, settings = sys.argv[1:]
settings, model = LabelSettings.model_validate_json(settings), ServedModel(orders, load_marked)
label_source(source, output, Brightness(None, orders), settings, "r1", served=model)
"""


@dataclass
class HeldBack:
    """Kills who uploads the first mask; it arrives after the next one of this name, or late."""

    name: str | None = None
    is_there_again: threading.Event = field(default_factory=threading.Event)

    def __call__(self, request: Request) -> Any:
        if not request.matches(r"^PUT .*/masks/"):
            return pass_on
        if self.name is None:
            self.name = request.path
            return self.hold
        return self.note if request.path == self.name else pass_on

    def hold(self, exchange: Exchange) -> None:
        port = exchange.handler.client_address[1]
        sender = next(one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.pid)
        os.kill(sender, signal.SIGKILL)
        self.is_there_again.wait(HELD_SECONDS)
        exchange.forward()
        exchange.handler.close_connection = True

    def note(self, exchange: Exchange) -> None:
        pass_on(exchange)
        self.is_there_again.set()


@pytest.fixture
def bucket(s3_server: str) -> Bucket:
    """24 pictures of noise."""
    import boto3

    client, name = boto3.client("s3", endpoint_url=s3_server), f"bucket-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    images = [f"raw/{number:03d}.png" for number in range(24)]
    for number, key in enumerate(images):
        client.put_object(Bucket=name, Key=key, Body=_picture(number))
    return Bucket(client, name, images)


def _picture(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_mask_that_arrives_after_its_workers_death_replaces_no_other_and_stdout_stays_empty(
    bucket: Bucket, s3_server: str, tmp_path: Path
) -> None:
    proxy = S3Proxy(s3_server)
    held = proxy.decide = HeldBack()
    settings = LabelSettings(
        shard_images=4, batch_images=2, fetch_threads=2, claim_seconds=12, engine="ray", workers="2"
    )
    arguments = [bucket.source, f"s3://{bucket.name}/out", str(tmp_path), settings.model_dump_json()]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        env=os.environ | {"PYTHONPATH": paths, "AWS_ENDPOINT_URL": proxy.url, "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    proxy.close()
    assert done.returncode == 0, done.stderr
    assert held.is_there_again.is_set()
    bucket.assert_whole("out", {"r1"})
    assert done.stdout == ""
