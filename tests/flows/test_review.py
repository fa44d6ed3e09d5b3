"""What review/sync says before it asks Label Studio for anything; the exchange itself: tests/studio."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client

from flows.review import SECRET_BLOCK, sync

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
