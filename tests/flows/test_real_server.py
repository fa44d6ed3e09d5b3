"""A real Prefect server: guards the bounds on fastapi and SQLAlchemy in pyproject.toml.

With a fastapi too new no server starts; with a SQLAlchemy too new it starts, and no scheduled run appears.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "SEGPIPE_SOURCE": "s3://bucket/images",
    "SEGPIPE_OUTPUT": "s3://bucket/labels",
    "SEGPIPE_MODEL": "s3://bucket/model",
}

pytestmark = pytest.mark.server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(look: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    pytest.fail(f"{what} did not come within {seconds:.0f} s")


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `prefect` talks to these tests' own server, with prefect.yaml deployed."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = (
        os.environ
        | PLACES
        | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: process.poll() is not None or is_healthy(url), "the Prefect server", 120)
        assert process.poll() is None, (home / "server.log").read_text()
        prefect(environment, "work-pool", "create", "segpipe", "--type", "process")
        prefect(environment, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        yield environment
    finally:
        process.terminate()
        process.wait(30)


def prefect(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def post(environment: dict[str, str], path: str, body: dict[str, Any]) -> Any:
    return httpx.post(environment["PREFECT_API_URL"] + path, json=body).raise_for_status().json()


def test_the_deployment_is_scheduled_every_night_with_its_parameters(deployed: dict[str, str]) -> None:
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = wait_for(lambda: post(deployed, "/flow_runs/filter", scheduled), "a scheduled run", 120)

    assert {run["expected_start_time"][11:19] for run in runs} == {"02:00:00"}
    assert runs[0]["parameters"] == {
        "source": "s3://bucket/images",
        "output": "s3://bucket/labels",
        "model": "s3://bucket/model",
    }


def test_the_form_explains_every_parameter(deployed: dict[str, str]) -> None:
    (deployment,) = post(deployed, "/deployments/filter", {})
    schema = deployment["parameter_openapi_schema"]

    assert schema["required"] == ["source", "output", "model"]
    assert all(field["description"] for field in schema["properties"].values())
    settings = schema["definitions"]["LabelSettings"]["properties"]
    assert all(field["title"] and field["description"] for field in settings.values())
