"""The cleanup flow on a real Prefect server: which flow runs go, and what the page of the run says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed

from flows.cleanup import cleanup, deleted_pages
from segpipe import storage

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow(name="old-work")
def old_work() -> None:
    """Nothing, some time ago."""


def finished_run(days_ago: float) -> str:
    """A flow run that completed so many days ago."""
    ended = datetime.now(UTC) - timedelta(days=days_ago)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(old_work)
        client.set_flow_run_state(run.id, Completed(timestamp=ended), force=True)
        return run.id


def is_there(run_id: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_flow_run(run_id)
        except ObjectNotFound:
            return False
    return True


def table(state: State) -> list[dict[str, Any]]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(artifact_filter=wanted)
    return json.loads(artifact.data)


def abandoned_claims(output: Path) -> None:
    for number in (1, 2):
        claim = '{"run_id": "r", "owner": "o", "expires_at": "2026-01-01T00:00:00+00:00", "released": false}'
        storage.put(f"{output}/claims/aaaaaaaaaaaa/{number:08d}.json", claim.encode())


def test_only_finished_runs_older_than_the_limit_go() -> None:
    old, young = finished_run(31), finished_run(29)
    with get_client(sync_client=True) as client:
        waiting = client.create_flow_run(old_work).id

    state = cleanup(keep_flow_runs_days=30, return_state=True)

    assert state.is_completed()
    assert not is_there(old)
    assert is_there(young)
    assert is_there(waiting)
    assert table(state)[0] == {"output": "Prefect server", "flow runs": state.result()["flow_runs"]}


def test_deletion_goes_page_by_page_and_stops_at_its_bound() -> None:
    runs = [finished_run(400) for _ in range(7)]
    year_ago = datetime.now(UTC) - timedelta(days=365)
    assert sum(deleted_pages(year_ago, 5)) == 5
    assert sum(is_there(run) for run in runs) == 2
    assert sum(deleted_pages(year_ago, 100)) == 2
    assert sum(deleted_pages(year_ago, 100)) == 0


def test_an_output_that_cannot_be_cleaned_fails_the_run_and_the_others_are_cleaned(tmp_path: Path) -> None:
    abandoned_claims(tmp_path)
    state = cleanup(outputs=["nosuch://bucket/labels", str(tmp_path)], return_state=True)

    assert state.is_failed()
    assert state.message.startswith("nosuch://bucket/labels: ")
    assert "\n" not in state.message
    _, refused, cleaned = table(state)
    assert "nosuch" in refused["error"]
    assert cleaned["output"] == str(tmp_path)
    assert cleaned["old claims"] == 1


def test_a_password_in_an_output_is_not_shown(tmp_path: Path) -> None:
    state = cleanup(outputs=["s3://user:hunter2-hunter2@bucket/labels"], return_state=True)
    assert state.is_failed()
    assert "hunter2" not in state.message + json.dumps(table(state))
