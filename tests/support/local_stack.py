"""The local stack of a test's own, run with the commands a user types, and a receiver of its alarms."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from deployments import login
from deployments.processes import pid_of

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hook-secret-3f9a1c"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Receiver:
    """A webhook that remembers what it was sent."""

    url: str
    calls: list[dict[str, Any]] = field(default_factory=list)

    def call(self, chosen: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        return next((call for call in self.calls if chosen(call)), None)

    def wait_for_run(self, run_id: str) -> dict[str, Any]:
        """The alarm about a flow run."""
        called = wait_for(lambda: self.call(lambda call: call["url"].endswith(run_id)), "the alarm")
        return dict(called)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listen on a port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/{SECRET}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield receiver
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class LocalStack:
    """A stack in a folder of its own."""

    folder: Path
    environment: dict[str, str]
    api: str

    def command(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deployments.stack", verb, "--folder", str(self.folder), *options]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def up(self) -> str:
        done = self.command("up")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prefect(self, *arguments: str, cwd: Path = ROOT) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        environment = self.environment | self.access
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def login(self) -> str:
        """USER:PASSWORD of the server."""
        return login.read(self.folder)

    @property
    def access(self) -> dict[str, str]:
        """What a shell needs in its environment to ask the server."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.login}

    def kill(self, program: str) -> int:
        """Kill a program of the stack and all it has started, at once; its process id."""
        leader = psutil.Process(pid_of(self.folder, program))
        family = [leader, *leader.children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=30)
        return leader.pid

    def get(self, path: str) -> Any:
        with self.client() as client:
            return client.get(path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        with self.client() as client:
            answer = client.post(path, json=body, headers=csrf_headers(client)).raise_for_status()
            return answer.json() if answer.content else None

    def client(self) -> httpx.Client:
        """Asks the server as someone who has its login."""
        return httpx.Client(base_url=self.api, auth=login.as_pair(self.login), timeout=60)

    def start(
        self, deployment: str, environment: Mapping[str, str] = MappingProxyType({}), **parameters: Any
    ) -> str:
        """Start a deployment as the page's button does, with these variables more; the flow run's id."""
        found = self.get(f"/deployments/name/{deployment}")
        job_variables = found["job_variables"]
        body = {
            "parameters": found["parameters"] | parameters,
            "job_variables": job_variables | {"env": job_variables.get("env", {}) | environment},
        }
        return str(self.post(f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        """All flow runs of a deployment, also those to come."""
        body = {"deployments": {"name": {"any_": [deployment]}}}
        return list(self.post("/flow_runs/filter", body))

    def wait_for_end(self, run_id: str, seconds: float = 240) -> dict[str, Any]:
        """The flow run once it has ended."""

        def ended() -> dict[str, Any] | None:
            run = self.get(f"/flow_runs/{run_id}")
            return run if run["state_type"] in ENDED else None

        return dict(wait_for(ended, f"the end of flow run {run_id}", seconds))

    def state_of(self, run_id: str) -> str:
        return str(self.get(f"/flow_runs/{run_id}")["state_type"])

    def emit(self, resource: str, payload: dict[str, Any], event_id: str | None = None) -> None:
        """The event as flows/watch.py emits it, over the HTTP API."""
        event = {
            "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "segpipe.bucket.discovered",
            "resource": {"prefect.resource.id": f"segpipe.source.{resource}"},
            "payload": payload,
            "id": event_id or f"00000000-0000-4000-8000-{abs(hash(resource)) % 10**12:012d}",
        }
        self.post("/events", [event])

    def logs(self) -> str:
        return "".join(log.read_text(errors="replace") for log in (self.folder / "logs").iterdir())


def csrf_headers(client: httpx.Client) -> dict[str, str]:
    """What the server wants to see in every request that changes something, and in every filter."""
    asker = str(uuid4())
    token = client.get("/csrf-token", params={"client": asker}).raise_for_status().json()["token"]
    return {"Prefect-Csrf-Client": asker, "Prefect-Csrf-Token": token}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(look: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What `look` finds, once it finds something; a server that is away for a while is looked for again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"{what} did not come within {seconds:.0f} s")
