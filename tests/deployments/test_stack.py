"""`make up` and `make down` for real: schedules, the event trigger, alarms and killed processes.

Guards the bounds on fastapi and SQLAlchemy in pyproject.toml too: with a fastapi too new no server starts;
with a SQLAlchemy too new it starts, and no scheduled run appears.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from local_stack import SECRET, LocalStack, Receiver, free_port, receiving, wait_for
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.processes import pid_of
from flows.events import send_drifted

SOURCES = "s3://bucket/sources.toml"
SILENT_SECONDS = 40  # heartbeats come every 30
SLEEPY_FLOW = """
import time
from prefect import flow

@flow(name="sleepy")
def sleepy():
    time.sleep(600)
"""
SLEEPY_DEPLOYMENT = """
name: sleepy
deployments:
  - name: long
    entrypoint: sleepy.py:sleepy
    work_pool: {name: segpipe}
"""

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def webhook() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def stack(webhook: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder, port = tmp_path_factory.mktemp("stack"), free_port()
    names = ("PREFECT_API_URL", "PREFECT_HOME", "DATABASE", "STACK")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {
        "PORT": str(port),
        "S3": "moto",
        "S3_PORT": str(free_port()),
        "SILENT_SECONDS": str(SILENT_SECONDS),
        "SEGPIPE_SOURCES": SOURCES,
        "SEGPIPE_TIMEZONE": "Europe/Berlin",
        "SEGPIPE_WEBHOOK_URL": webhook.url,
    }
    stack = LocalStack(folder, environment, f"http://127.0.0.1:{port}/api")
    try:
        said = stack.up()
        assert f"export PREFECT_API_URL={stack.api}" in said
        assert f"export AWS_ENDPOINT_URL=http://127.0.0.1:{environment['S3_PORT']}" in said
        assert SECRET not in said
        yield stack
    finally:
        stack.command("down")


@pytest.fixture(scope="module")
def sleepy(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Starts a flow run that takes ten minutes, and waits until it is heard of: () -> its id."""
    project = tmp_path_factory.mktemp("sleepy")
    (project / "sleepy.py").write_text(SLEEPY_FLOW)
    (project / "prefect.yaml").write_text(SLEEPY_DEPLOYMENT)
    stack.prefect("deploy", "--all", cwd=project)

    def run() -> str:
        (deployment,) = stack.post("/deployments/filter", {"deployments": {"name": {"any_": ["long"]}}})
        created = stack.post(f"/deployments/{deployment['id']}/create_flow_run", {})
        wait_for(lambda: has_heartbeat(stack, created["id"]), "the first heartbeat of a run")
        return created["id"]

    return run


def has_heartbeat(stack: LocalStack, run_id: str) -> bool:
    chosen = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run_id}"]},
    }
    return stack.post("/events/filter", {"filter": chosen})["total"] > 0


def test_nightly_and_watch_are_scheduled_with_their_parameters(stack: LocalStack) -> None:
    nightly = wait_for(lambda: stack.runs_of("nightly"), "a nightly run")
    looks = wait_for(lambda: stack.runs_of("buckets"), "a look for buckets")
    weekly = wait_for(lambda: stack.runs_of("weekly"), "a weekly run")

    # 2 o'clock in Berlin is 1 o'clock UTC in winter and 0 o'clock in summer.
    assert {run["expected_start_time"][11:19] for run in nightly} <= {"00:00:00", "01:00:00"}
    for run in (nightly[0], looks[0], weekly[0]):
        assert run["state_type"] == "SCHEDULED"
        assert run["parameters"]["sources"] == SOURCES


def test_each_deployment_has_its_place_and_limit(stack: LocalStack) -> None:
    found = {deployment["name"]: deployment for deployment in stack.post("/deployments/filter", {})}
    queues = {name: deployment["work_queue_name"] for name, deployment in found.items() if name != "long"}
    assert queues == {
        "nightly": "compute",
        "on-bucket": "compute",
        "manual": "compute",
        "buckets": "default",
        "weekly": "default",
        "sync": "default",
    }
    limits = {name: deployment["global_concurrency_limit"] for name, deployment in found.items()}
    assert all(limits[name]["limit"] == 1 for name, queue in queues.items() if queue == "default")
    assert found["buckets"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    lasting = [name for name, queue in queues.items() if queue == "compute"]
    assert not any(limits[name] for name in lasting), "a restarted server would end runs that hold a lease"
    (compute,) = [q for q in stack.post("/work_pools/segpipe/queues/filter", {}) if q["name"] == "compute"]
    assert compute["concurrency_limit"] == 1


def test_the_form_explains_every_parameter(stack: LocalStack) -> None:
    chosen = {"deployments": {"name": {"any_": ["on-bucket"]}}}
    (deployment,) = stack.post("/deployments/filter", chosen)
    schema = deployment["parameter_openapi_schema"]

    assert schema["required"] == ["source", "output", "model"]
    assert all(field["description"] for field in schema["properties"].values())
    settings = schema["definitions"]["LabelSettings"]["properties"]
    assert all(field["title"] and field["description"] for field in settings.values())


def test_the_event_starts_a_run_and_its_failure_calls_the_webhook(
    stack: LocalStack, webhook: Receiver, tmp_path: Path
) -> None:
    payload = {
        "source": str(tmp_path / "nothing here"),
        "output": str(tmp_path / "out"),
        "model": str(tmp_path / "model"),
        "settings": {"shard_images": 32, "drift_warn_only": True},
    }
    stack.emit("one", payload)

    (run,) = wait_for(lambda: stack.runs_of("on-bucket"), "a triggered run")
    assert run["parameters"] == payload
    alarm = wait_for(
        lambda: webhook.call(lambda call: call["url"].endswith(f"/runs/flow-run/{run['id']}")), "the alarm"
    )
    assert alarm["event"] == "prefect.flow-run.Failed"
    assert alarm["state"] == "Failed"
    assert alarm["flow_run"].startswith(f"label {payload['source']}")
    assert str(tmp_path / "model") in alarm["message"]
    assert alarm["text"].startswith(f"segpipe: {alarm['flow_run']}: Failed: {alarm['message']} http://")
    assert alarm["url"] == f"{stack.api.removesuffix('/api')}/runs/flow-run/{run['id']}"


def test_an_event_without_a_model_starts_nothing_and_calls_the_webhook(
    stack: LocalStack, webhook: Receiver
) -> None:
    before = len(stack.runs_of("on-bucket"))
    stack.emit("two", {"source": "s3://raw-two", "output": "s3://out"})
    alarm = wait_for(
        lambda: webhook.call(lambda call: call["event"] == "prefect.automation.action.failed"), "the alarm"
    )
    assert "segpipe label on-bucket" in alarm["message"]
    assert "'model'" in alarm["message"]
    assert alarm["flow_run"] is None
    assert len(stack.runs_of("on-bucket")) == before


def test_a_drifted_run_calls_the_webhook(
    stack: LocalStack, webhook: Receiver, sleepy: Callable[[], str]
) -> None:
    run_id = sleepy()
    name = stack.get(f"/flow_runs/{run_id}")["name"]
    run = SimpleNamespace(run_id=f"flow-{run_id}", source="s3://raw", output="s3://labels")
    access = {PREFECT_API_URL: stack.api, PREFECT_API_AUTH_STRING: stack.login}
    with temporary_settings(access), get_client(sync_client=True) as client:
        for _ in range(2):  # as a retried task does
            send_drifted(client, run_id, name, run)  # type: ignore[arg-type]
    alarm = wait_for(lambda: webhook.call(lambda call: call["state"] == "Drifted"), "the alarm")
    assert alarm["flow_run"] == name
    assert alarm["url"].endswith(f"/runs/flow-run/{run_id}")
    stack.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    assert stack.wait_for_end(run_id)["state_type"] == "CANCELLED"
    assert len([call for call in webhook.calls if call["state"] == "Drifted"]) == 1


def test_a_killed_worker_is_noticed_and_up_starts_it_again(
    stack: LocalStack, webhook: Receiver, sleepy: Callable[[], str]
) -> None:
    run_id = sleepy()
    worker = psutil.Process(pid_of(stack.folder, "worker"))
    for process in (worker, *worker.children(recursive=True)):
        process.kill()
    assert stack.command("status").returncode == 1

    alarm = wait_for(lambda: webhook.call(lambda call: call["url"].endswith(run_id)), "the alarm")
    assert alarm["state"] == "Crashed"
    assert "killed" in alarm["message"]
    assert stack.state_of(run_id) == "CRASHED"
    # One thing went wrong, so the operator is called once; nor does the detection alarm about itself.
    assert len([call for call in webhook.calls if run_id in json.dumps(call)]) == 1

    server = pid_of(stack.folder, "server")
    stack.up()
    assert pid_of(stack.folder, "server") == server
    assert pid_of(stack.folder, "worker") not in (None, worker.pid)
    assert stack.command("status").returncode == 0


def test_a_second_stack_on_the_same_port_is_refused_in_one_line(stack: LocalStack, tmp_path: Path) -> None:
    other = LocalStack(tmp_path / "other", stack.environment | {"S3": ""}, stack.api)
    done = other.command("up")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    port = int(stack.environment["PORT"])
    assert f"port {port} is taken" in done.stderr
    assert f"make up PORT={port + 1000}" in done.stderr
    assert stack.command("status").returncode == 0


def test_a_database_that_does_not_answer_is_named_with_the_reason(tmp_path: Path) -> None:
    database = f"postgresql+asyncpg://prefect:{SECRET}@127.0.0.1:{free_port()}/prefect"
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "S3")}
    other = LocalStack(tmp_path, environment | {"PORT": str(free_port()), "DATABASE": database}, "")
    try:
        done = other.command("up")
    finally:
        other.command("down")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "ConnectionRefusedError" in done.stderr
    assert "is DATABASE right" in done.stderr
    assert SECRET not in done.stderr


def test_a_stack_that_runs_keeps_its_port(stack: LocalStack) -> None:
    done = LocalStack(stack.folder, stack.environment | {"PORT": str(free_port())}, stack.api).command("up")
    assert done.returncode == 1
    assert "make down" in done.stderr


def test_down_leaves_nothing_running_and_no_run_that_claims_to_run(
    stack: LocalStack, webhook: Receiver, sleepy: Callable[[], str]
) -> None:
    run_id = sleepy()
    worker = psutil.Process(pid_of(stack.folder, "worker"))
    running = [worker, *worker.children(recursive=True), psutil.Process(pid_of(stack.folder, "server"))]
    assert len(running) == 3

    done = stack.command("down")

    assert done.stdout.count("stopped") == 3
    assert not any(process.is_running() for process in running)
    with closing(sqlite3.connect(stack.folder / "prefect" / "prefect.db")) as database:
        (state,) = database.execute(
            "SELECT state_type FROM flow_run WHERE replace(id, '-', '') = ?", [run_id.replace("-", "")]
        ).fetchone()
    assert state == "CRASHED"
    assert SECRET not in stack.logs()
    again = stack.command("down")
    assert again.returncode == 0
    assert again.stdout.count("was not running") == 3
