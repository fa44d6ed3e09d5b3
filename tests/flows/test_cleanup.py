"""The cleanup flow on a real Prefect server: which flow runs go, and what the page of the run says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import ObjectNotFound

from flows import cleanup as cleanup_module
from flows.cleanup import cleanup, deleted_pages
from segpipe import storage

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow(name="old-work")
def old_work() -> None:
    """Nothing, some time ago."""


def finished_run() -> UUID:
    """A flow run that has just completed."""
    return old_work(return_state=True).state_details.flow_run_id


def is_there(run_id: UUID) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_flow_run(run_id)
        except ObjectNotFound:
            return False
    return True


def table(state: State) -> list[dict[str, Any]]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=wanted)
    # Prefect's client sends once more what a busy server stored and did not answer in time.
    (data,) = {artifact.data for artifact in artifacts}
    return json.loads(data)


def abandoned_claims(output: Path) -> None:
    for number in (1, 2):
        claim = '{"run_id": "r", "owner": "o", "expires_at": "2026-01-01T00:00:00+00:00", "released": false}'
        storage.put(f"{output}/claims/aaaaaaaaaaaa/{number:08d}.json", claim.encode())


def test_only_finished_runs_older_than_the_limit_go() -> None:
    old = finished_run()
    limit = datetime.now(UTC)
    young = finished_run()
    with get_client(sync_client=True) as client:
        waiting = client.create_flow_run(old_work).id

    assert sum(deleted_pages(limit, 1000)) >= 1

    assert not is_there(old)
    assert is_there(young)
    assert is_there(waiting)


def test_deletion_goes_page_by_page_and_stops_at_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup_module, "PAGE", 2)
    sum(deleted_pages(datetime.now(UTC), 1000))
    runs = [finished_run() for _ in range(7)]
    assert list(deleted_pages(datetime.now(UTC), 5)) == [2, 2, 1]
    assert sum(is_there(run) for run in runs) == 2
    assert list(deleted_pages(datetime.now(UTC), 1000)) == [2]


def test_the_flow_keeps_runs_for_as_many_days_as_it_is_told() -> None:
    run = finished_run()
    state = cleanup(keep_flow_runs_days=1, return_state=True)
    assert state.is_completed()
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(state.state_details.flow_run_id)
    assert own.name == f"clean up all outputs {own.expected_start_time:%Y-%m-%d}"
    assert is_there(run)
    assert table(state) == [{"output": "Prefect server", "flow runs": 0}]

    state = cleanup(keep_flow_runs_days=0, return_state=True)
    assert not is_there(run)
    assert is_there(state.state_details.flow_run_id)
    assert table(state)[0]["flow runs"] == state.result()["flow_runs"] >= 1


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
