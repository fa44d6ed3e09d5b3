"""A day in operation, for real: Prefect server on PostgreSQL, worker, S3 server, and processes killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import numpy as np
import pytest
from local_stack import SECRET, LocalStack, Receiver, free_port, receiving, wait_for
from postgres import PASSWORD, find_programs, postgres
from random_model import write_random_model
from s3_bucket import Bucket
from s3_proxy import Action, Request, S3Proxy, pass_on

from demo.scenes import write_raw_bucket
from deployments.processes import pid_of
from deployments.stack import MOTO_ENVIRONMENT
from segpipe import storage
from segpipe.sources.sources_file import find_sources, read_sources

SILENT_SECONDS = 40  # heartbeats come every 30
OUTAGE_SECONDS = 10
AWAY_SECONDS = 40  # less than one of the requests that Prefect's client repeats while the server is away
IMAGES_A_SECOND = 20  # of a run that has to last, however fast the machine is
SETTINGS = {"device": "cpu", "shard_images": 8, "batch_images": 4, "claim_seconds": 10}

pytestmark = pytest.mark.e2e


@dataclass
class Operation:
    """The stack, its S3 server as a client sees it, and what the sources file names."""

    stack: LocalStack
    webhook: Receiver
    s3: Any
    s3_url: str
    slow_s3: S3Proxy
    model: str
    sources: Path
    scenes: list[bytes]
    buckets: list[str] = field(default_factory=list)

    def bucket(self, prefix: str, n_images: int) -> Bucket:
        """A new bucket of JPEGs: a few drawn street scenes under many names."""
        name = f"{prefix}-{uuid4().hex[:8]}"
        self.s3.create_bucket(Bucket=name)
        keys = [f"raw/{number:05d}.jpg" for number in range(n_images)]
        for number, key in enumerate(keys):
            self.s3.put_object(Bucket=name, Key=key, Body=self.scenes[number % len(self.scenes)])
        return Bucket(self.s3, name, keys)

    def label(self, bucket: Bucket, s3_url: str) -> str:
        """Start label/on-bucket by hand, with its S3 server at this address; the flow run's id."""
        return self.stack.start(
            "label/on-bucket",
            {"AWS_ENDPOINT_URL": s3_url},
            source=bucket.source,
            output=f"s3://{bucket.name}/labels",
            model=self.model,
            settings=SETTINGS,
        )

    def wait_for_parts(self, bucket: Bucket, n_parts: int, seconds: float = 180) -> None:
        """Until labelling is under way."""
        wait_for(lambda: len(bucket.keys("labels/manifests/")) >= n_parts, f"{n_parts} parts", seconds)


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    folder = tmp_path_factory.mktemp("operation")
    with ExitStack() as cleanup:
        webhook = cleanup.enter_context(receiving())
        port, s3_port = free_port(), free_port()
        s3_url = f"http://127.0.0.1:{s3_port}"
        programs = find_programs()
        database = cleanup.enter_context(postgres(programs, free_port())) if programs else ""
        sources = folder / "sources.toml"
        names = ("PREFECT_API_URL", "PREFECT_HOME", "STACK", "AWS_ENDPOINT_URL", "OMP_NUM_THREADS")
        environment = {name: value for name, value in os.environ.items() if name not in names} | {
            "PORT": str(port),
            "S3": "moto",
            "S3_PORT": str(s3_port),
            "SILENT_SECONDS": str(SILENT_SECONDS),
            "SEGPIPE_SOURCES": str(sources),
            "SEGPIPE_WEBHOOK_URL": webhook.url,
            "DATABASE": database,
            "OMP_NUM_THREADS": "1",
        }
        model = write_random_model(str(folder / "model"))
        sources.write_text(_sources(folder, model))
        stack = LocalStack(folder / "stack", environment, f"http://127.0.0.1:{port}/api")
        cleanup.callback(stack.command, "down")
        stack.up()
        slow_s3 = S3Proxy(s3_url)
        cleanup.callback(slow_s3.close)
        slow_s3.decide = _paced
        yield Operation(stack, webhook, _client(s3_url), s3_url, slow_s3, model, sources, _scenes())


def _paced(request: Request) -> Action:
    """The proxy asks about one request at a time."""
    if request.matches("GET .*[.]jpg"):
        time.sleep(1 / IMAGES_A_SECOND)
    return pass_on


def _sources(folder: Path, model: str) -> str:
    settings = ", ".join(f"{name} = {value!r}" for name, value in SETTINGS.items())
    return f"""
state = "{folder}/state"
[[source]]
pattern = "s3://arrivals-*/raw"
output = "{folder}/labels/{{name}}"
model = "{model}"
settings = {{ {settings} }}
"""


def _client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=MOTO_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=MOTO_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        region_name=MOTO_ENVIRONMENT["AWS_DEFAULT_REGION"],
    )


def _scenes() -> list[bytes]:
    source = f"memory://scenes-{uuid4().hex[:8]}"
    write_raw_bucket(source, 8, 0, np.random.default_rng(0))
    return [storage.read_bytes(item.uri) for item in storage.list_objects(source)]


def test_the_nights_to_come_are_scheduled(operation: Operation) -> None:
    nights = wait_for(lambda: operation.stack.runs_of("nightly"), "a scheduled night")
    assert {night["state_type"] for night in nights} == {"SCHEDULED"}
    assert {night["parameters"]["sources"] for night in nights} == {str(operation.sources)}


def test_a_new_bucket_is_labelled_by_itself_and_thrice_the_event_does_nothing_twice(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (MOTO_ENVIRONMENT | {"AWS_ENDPOINT_URL": operation.s3_url}).items():
        monkeypatch.setenv(name, value)
    stack = operation.stack
    bucket = operation.bucket("arrivals", 20)
    stack.start("watch/buckets")  # it comes by itself every five minutes
    (run,) = wait_for(lambda: stack.runs_of("on-bucket"), "the run that the event starts")
    assert stack.wait_for_end(run["id"])["state_name"] == "Completed"

    (source,), _ = find_sources(read_sources(str(operation.sources)))
    manifest = Path(source.output) / "manifests"
    rows = storage_rows(manifest)
    assert sorted(row["image_uri"] for row in rows) == [f"s3://{bucket.name}/{key}" for key in bucket.images]

    payload = {"source": source.url, "output": source.output, "model": source.model, "settings": SETTINGS}
    for _ in range(3):
        stack.emit(source.digest, payload, str(uuid4()))
    runs = wait_for(lambda: len(runs := stack.runs_of("on-bucket")) == 4 and runs, "three more runs")
    for again in runs:
        assert stack.wait_for_end(again["id"])["state_name"] == "Completed"
    assert storage_rows(manifest) == rows

    night = stack.start("label/nightly")
    assert stack.wait_for_end(night)["state_name"] == "Completed"
    assert storage_rows(manifest) == rows


def storage_rows(manifest: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    parts = sorted(manifest.rglob("*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def test_after_the_worker_was_killed_the_next_run_labels_the_rest(operation: Operation) -> None:
    stack, bucket = operation.stack, operation.bucket("killed", 400)
    run = operation.label(bucket, operation.slow_s3.url)
    operation.wait_for_parts(bucket, 3)
    stack.kill("worker")
    committed = len(bucket.assert_finished_facts("labels"))
    assert 0 < committed < len(bucket.images)

    alarm = operation.webhook.wait_for_run(run)
    assert alarm["state"] == "Crashed"
    stack.up()
    next_run = operation.label(bucket, operation.s3_url)
    assert stack.wait_for_end(next_run)["state_name"] == "Completed"
    rows = bucket.assert_finished_facts("labels")
    assert len(rows) == len(bucket.images)
    assert {row["run_id"] for row in rows} == {f"flow-{run}", f"flow-{next_run}"}


def test_a_server_that_is_away_stops_nothing_and_loses_nothing(operation: Operation) -> None:
    stack, bucket = operation.stack, operation.bucket("outage", 1000)
    run = operation.label(bucket, operation.slow_s3.url)
    operation.wait_for_parts(bucket, 2)
    stack.kill("server")
    try:
        time.sleep(OUTAGE_SECONDS)
        operation.wait_for_parts(bucket, len(bucket.keys("labels/manifests/")) + 2, AWAY_SECONDS)
        assert len(bucket.assert_finished_facts("labels")) < len(bucket.images)
    finally:
        stack.up()

    assert stack.wait_for_end(run)["state_name"] == "Completed"
    rows = bucket.assert_finished_facts("labels")
    assert len(rows) == len(bucket.images)
    assert {row["run_id"] for row in rows} == {f"flow-{run}"}


def test_an_s3_server_that_goes_down_fails_the_run_in_one_line_and_calls_the_webhook(
    operation: Operation,
) -> None:
    stack, bucket = operation.stack, operation.bucket("down", 400)
    run = operation.label(bucket, operation.s3_url)
    operation.wait_for_parts(bucket, 2)
    stack.kill("s3")

    ended = stack.wait_for_end(run, 400)
    assert ended["state_name"] == "Failed"
    message = ended["state"]["message"]
    assert "\n" not in message
    assert f"s3://{bucket.name}" in message
    alarm = operation.webhook.wait_for_run(run)
    assert alarm["message"] == message


def test_no_secret_is_in_any_log(operation: Operation) -> None:
    logs = operation.stack.logs()
    for secret in (PASSWORD, SECRET, operation.stack.login, MOTO_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in logs


def test_down_leaves_nothing_running(operation: Operation) -> None:
    stack = operation.stack
    assert stack.command("down").returncode == 0
    assert [pid_of(stack.folder, name) for name in ("server", "worker", "s3")] == [None, None, None]
