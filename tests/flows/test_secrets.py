"""A planted secret is nowhere: not on the Prefect server, not under OUTPUT, not on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from flows.label import label
from flows.nightly import label_sources
from flows.watch import watch
from segpipe import storage
from segpipe.config import LabelSettings

SECRET = "planted-Secret+71/Kq0x"
SETTINGS = LabelSettings(device="cpu")

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def planted(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that is reached with the secret."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED000000001")
    return s3_bucket


def on_the_server(state: State) -> str:
    """All that the server keeps about a flow run and its tasks, as text, but the parameters as given."""
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id).model_dump_json(exclude={"parameters"})
        of_run = {"flow_runs": {"id": {"any_": [str(run_id)]}}}
        kept = [
            client.request("POST", path, json=of_run).text
            for path in ("/artifacts/filter", "/task_runs/filter")
        ]
        states = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(run_id)}).text
        return "".join((run, *kept, states, _logs(client, state)))


def _logs(client: SyncPrefectClient, state: State) -> str:
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    deadline = time.monotonic() + 60  # they are sent every two seconds
    while "Finished in state" not in (text := "".join(log.message for log in client.read_logs(wanted))):
        assert time.monotonic() < deadline, "the last log line did not arrive"
        time.sleep(0.2)
    return text


def require_absent(text: str, needed: str) -> None:
    """The text holds what it should, to show that it was looked at, and no secret."""
    assert needed in text
    for secret in (SECRET, "planted-Secret%2B71%2FKq0x", "hidden-word"):
        assert secret not in text


def test_a_run_that_succeeds_leaves_no_secret(
    planted: str, tiny_model: str, encoded: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    source, output = f"s3://{planted}/raw", f"s3://{planted}/labels"
    storage.put(f"{source}/a.png", encoded(np.zeros((20, 30, 3), np.uint8)))
    storage.put(f"{source}/b.png", b"no image")
    state = label(source, output, tiny_model, settings=SETTINGS, return_state=True)
    assert state.is_completed()
    require_absent(on_the_server(state), f"{output}/manifests")
    for found in storage.list_objects(output):
        content = storage.read_bytes(found.uri)
        assert SECRET.encode() not in content, found.uri
    require_absent(caplog.text, "planned run")


@pytest.mark.parametrize("flow", [watch, label_sources])
def test_a_sources_file_with_a_password_fails_its_entry_and_shows_it_nowhere(
    planted: str, tiny_model: str, flow: Callable[..., State], caplog: pytest.LogCaptureFixture
) -> None:
    file = f"s3://{planted}/sources.toml"
    entry = (
        f'state = "s3://{planted}/state"\n[[source]]\npattern = "ftp://user:hidden-word@host/raw"\n'
        f'output = "s3://{planted}/labels"\nmodel = "{tiny_model}"\n'
    )
    storage.put(file, entry.encode())
    state = flow(file, return_state=True)
    assert state.is_failed()
    require_absent(on_the_server(state), "ftp://***@host")
    require_absent(caplog.text, "ftp://***@host")


def test_a_run_that_fails_leaves_no_secret(
    planted: str, tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = label(
        "ftp://user:hidden-word@host/raw",
        f"s3://{planted}/labels",
        tiny_model,
        settings=SETTINGS,
        return_state=True,
    )
    assert state.is_failed()
    require_absent(on_the_server(state), "carries a password")
    require_absent(caplog.text, "carries a password")
