"""A real Label Studio server in its own virtual environment, and what a person does in it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

TOKEN = "0123456789abcdef0123456789abcdef01234567"
EMAIL, PASSWORD = "reviewer@example.com", "a-password-of-tests"


@dataclass(frozen=True)
class Studio:
    """The server, talked to past segpipe."""

    url: str

    def call(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        headers = {"Authorization": f"Token {TOKEN}"}
        answer = httpx.request(
            method, self.url + path, json=body, params=parameters, headers=headers, timeout=120
        )
        assert answer.is_success, f"{answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def project_id(self, title: str) -> int:
        (found,) = [
            one["id"] for one in self.call("GET", "/api/projects/")["results"] if one["title"] == title
        ]
        return int(found)

    def tasks(self, title: str) -> list[dict[str, Any]]:
        """All tasks of the project with drafts and annotations, by number."""
        path = f"/api/projects/{self.project_id(title)}/export"
        tasks = self.call("GET", path, exportType="JSON", download_all_tasks="true")
        return sorted(tasks, key=lambda task: task["id"])

    def draft(self, task: dict[str, Any]) -> dict[str, Any]:
        """The prediction of a task, as the editor loads it."""
        (draft,) = self.call("GET", f"/api/tasks/{task['id']}/")["predictions"]
        return dict(draft)

    def submit(self, task: dict[str, Any], result: list[Any], **fields: Any) -> dict[str, Any]:
        """What the button Submit sends."""
        body = {"result": result, "lead_time": 30.0} | fields
        return dict(self.call("POST", f"/api/tasks/{task['id']}/annotations/", body))


@contextmanager
def running_studio(folder: Path) -> Iterator[Studio]:
    """Start the server that make test-studio has installed, with the S3 credentials of this process."""
    installed = os.environ.get("SEGPIPE_TEST_LABEL_STUDIO", ".venv-studio/bin/label-studio")
    program = Path(installed).absolute()  # the server is started in another folder
    if not program.exists():
        pytest.fail(f"{program} is not there: run make test-studio")
    port = _free_port()
    studio = Studio(f"http://127.0.0.1:{port}")
    command = [
        str(program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)
    ]  # fmt: skip
    log = folder / "label-studio.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=_environment(folder), stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
        try:
            _wait_until_up(studio, server, log)
            yield studio
        finally:
            server.terminate()
            server.wait(timeout=30)


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        "LABEL_STUDIO_USERNAME": EMAIL,
        "LABEL_STUDIO_PASSWORD": PASSWORD,
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "DJANGO_DB": "sqlite",
        "COLLECT_ANALYTICS": "False",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LATEST_VERSION_CHECK": "False",
        "SSRF_PROTECTION_ENABLED": "false",
    }


def _wait_until_up(studio: Studio, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{studio.url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"Label Studio did not start: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
