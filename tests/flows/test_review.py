"""What review/sync says before it asks Label Studio for anything; the exchange itself: tests/studio."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client

from flows.review import SECRET_BLOCK, Exchanged, project_of, sync, table_row
from segpipe.review.pull import PullSummary
from segpipe.review.push import PushSummary
from segpipe.review.tasks import Refusal

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_without_an_address_the_log_says_what_to_set_and_the_name_says_what_and_when(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = sync(return_state=True)
    assert state.result() == {"outputs": 0}
    assert "set SEGPIPE_LABEL_STUDIO" in caplog.text
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name == f"review all outputs {run.expected_start_time:%Y-%m-%d %H:%M}"


def test_without_a_token_the_reason_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    state = sync("http://127.0.0.1:1", outputs=["/labels/a", "/labels/b"], return_state=True)
    assert state.is_failed()
    assert str(state.message).count(f"create the Prefect Secret block {SECRET_BLOCK}") == 1


@pytest.mark.parametrize(("storage", "limit"), [("ftp", 100), ("s3", 0)])
def test_a_wrong_parameter_is_one_line(storage: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")
    state = sync("http://127.0.0.1:1", outputs=["/a"], storage=storage, limit=limit, return_state=True)
    assert state.is_failed()
    assert "correct the flow's parameters" in str(state.message)
    assert "\n" not in str(state.message)


def test_a_project_has_no_control_character_in_its_name() -> None:
    assert project_of("s3://lake/labels") == project_of("s3://lake/labels").strip()
    for output in ("s3://lake/two\nli\x1bnes", "s3://lake/" + "\x1b" * 99, "s3://lake/" + "x" * 99):
        assert project_of(output).isprintable()
        assert len(project_of(output)) <= 50


def test_the_table_holds_counts_and_no_lists() -> None:
    refusal = Refusal("p", 1, 2, "odd")
    pulled = PullSummary(1, 0, 0, 0, 0, 0, 1, 0, {"http://studio/tasks/1": refusal})
    pushed = PushSummary("http://studio/projects/1/data", 1, 0, 0, 1, 0, {"s3://raw/a": "why"})
    row = table_row(Exchanged("s3://lake/labels", "p", pulled, pushed))
    assert (row["refused"], row["left_out"]) == (1, 1)
    assert not any(isinstance(value, dict) for value in row.values())
