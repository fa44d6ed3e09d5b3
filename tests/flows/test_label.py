"""The label flow on a real Prefect server: what it leaves on storage and on its page, and how it fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
)

from flows import label as label_module
from flows.label import label
from segpipe.config import LabelSettings
from segpipe.errors import DeviceError, StorageError
from segpipe.labeling import ledger
from segpipe.labeling import run as labeling_run
from segpipe.models.labeler import Labeler

SETTINGS = LabelSettings(shard_images=2, batch_images=2, device="cpu")

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def bucket(tmp_path: Path, encoded: Callable[..., bytes]) -> str:
    """Five images and one text that is called an image."""
    folder = tmp_path / "street-photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        pixels = random.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encoded(pixels))
    (folder / "broken.jpg").write_text("not an image")
    return str(folder)


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plan_images", "label_images", "publish"):
        monkeypatch.setattr(
            label_module, name, getattr(label_module, name).with_options(retry_delay_seconds=0)
        )


def rows(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "manifests")


def artifacts(state: State) -> dict[str, Any]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        return {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=wanted)}


def test_every_image_gets_a_row_and_the_run_says_what_it_labelled(
    bucket: str, trusting_model: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    state = label(bucket, str(output), trusting_model, settings=SETTINGS, return_state=True)

    assert state.is_completed()
    summary = state.result()
    assert (summary["planned"], summary["accepted"], summary["review"], summary["failed"]) == (6, 5, 0, 1)
    assert rows(output).groupby(["decision", "reason"]).size().to_dict() == {
        ("accepted", "confident"): 5,
        ("failed", "unreadable"): 1,
    }
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name == f"label {bucket} {run.expected_start_time:%Y-%m-%d}"


def test_the_page_of_the_run_shows_counts_promise_and_the_next_commands(
    bucket: str, trusting_model: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    priced = SETTINGS.model_copy(update={"price_per_hour": 3600.0})
    page = artifacts(label(bucket, str(output), trusting_model, settings=priced, return_state=True))

    assert set(page) == {"label-progress", "label-summary", "label-decisions", "label-worst"}
    worst = json.loads(page["label-worst"].data)
    assert [row["decision"] for row in worst] == ["failed", *["accepted"] * 5]
    assert worst[0]["image"] == f"{bucket}/broken.jpg"
    assert worst[1]["mask"].startswith(f"{output}/masks/")
    assert [row["confidence"] for row in worst[1:]] == sorted(row["confidence"] for row in worst[1:])
    assert page["label-progress"].data == 100
    assert json.loads(page["label-decisions"].data) == [
        {"decision": "accepted", "reason": "confident", "images": 5, "share": 5 / 6},
        {"decision": "failed", "reason": "unreadable", "images": 1, "share": 1 / 6},
    ]
    text = page["label-summary"].data
    assert text.startswith("# 5 accepted, 0 to review, 1 failed\n")
    assert "at most 10% of accepted masks have IoU below 0.50, with 90% confidence" in text
    assert "is the bottleneck" in text
    assert "**Cost**" in text
    assert "at 3600 an hour" in text
    assert f"{output}/manifests" in text
    assert f"segpipe query {output} 'SELECT image_uri, reason, error FROM failures'" in text


def test_without_a_policy_nothing_is_accepted_and_the_page_says_how_to_get_one(
    bucket: str, tiny_model: str, tmp_path: Path
) -> None:
    state = label(bucket, str(tmp_path / "out"), tiny_model, settings=SETTINGS, return_state=True)
    assert (state.result()["accepted"], state.result()["review"]) == (0, 5)
    assert f"segpipe calibrate --model {tiny_model}" in artifacts(state)["label-summary"].data


def test_the_verdict_on_too_many_failures_says_that_a_retry_only_repeats_it(
    bucket: str, tiny_model: str, tmp_path: Path
) -> None:
    strict = SETTINGS.model_copy(update={"max_failure_rate": 0.1})
    state = label(bucket, str(tmp_path / "out"), tiny_model, settings=strict, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("1 of the 6 images of run flow-")
    assert f"unreadable, for example {bucket}/broken.jpg: " in state.message
    assert state.message.endswith(
        "start a new run, with retry in its settings for other reasons than storage"
    )


def test_a_second_run_plans_nothing(bucket: str, tiny_model: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    label(bucket, output, tiny_model, settings=SETTINGS)
    state = label(bucket, output, tiny_model, settings=SETTINGS, return_state=True)
    summary = state.result()
    assert (summary["planned"], summary["already_done"]) == (0, 6)
    assert artifacts(state)["label-progress"].data == 100


def test_a_task_retry_goes_on_where_storage_failed_and_labels_no_image_twice(
    bucket: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, commits = ledger.commit_part, []

    def fail_the_second(*arguments: Any) -> bool:
        commits.append(arguments)
        if len(commits) == 2:
            raise StorageError("the bucket was busy: try again")
        return commit(*arguments)

    monkeypatch.setattr(ledger, "commit_part", fail_the_second)
    state = label(bucket, str(tmp_path / "out"), tiny_model, settings=SETTINGS, return_state=True)

    assert state.is_completed()
    assert len(commits) == 4  # 3 shards, one of them twice
    assert sorted(rows(tmp_path / "out").image_uri) == sorted(str(path) for path in Path(bucket).iterdir())
    assert state.result()["planned"] == 6


def test_a_retried_flow_run_resumes_the_same_labelling_run(
    bucket: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, tries = label_module.finish_run, []

    def fail_once(*arguments: Any) -> labeling_run.RunSummary:
        tries.append(arguments)
        if len(tries) == 1:
            raise RuntimeError("the machine went away")
        return finish(*arguments)

    monkeypatch.setattr(label_module, "finish_run", fail_once)
    retried = label.with_options(retries=1)
    state = retried(bucket, str(tmp_path / "out"), tiny_model, settings=SETTINGS, return_state=True)

    assert len(tries) == 2
    assert state.result()["planned"] == 6
    assert set(rows(tmp_path / "out").run_id) == {f"flow-{state.state_details.flow_run_id}"}
    assert len(rows(tmp_path / "out")) == 6


def test_a_run_in_which_too_much_failed_is_failed_so_that_the_alarm_sounds_and_keeps_rows_and_page(
    bucket: str, tiny_model: str, tmp_path: Path
) -> None:
    for image in Path(bucket).glob("[123].png"):
        image.write_text("no image either")
    settings = SETTINGS.model_copy(update={"max_failure_rate": 0.6})
    state = label(bucket, str(tmp_path / "out"), tiny_model, settings=settings, return_state=True)
    assert state.is_failed()
    assert "4 of the 6 images of run flow-" in state.message
    assert "(4 unreadable)" in state.message
    assert len(rows(tmp_path / "out")) == 6
    assert artifacts(state)["label-summary"].data.startswith("# 0 accepted, 2 to review, 4 failed\n")


def test_a_missing_bucket_fails_the_run_at_once_with_one_line(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = str(tmp_path / "nowhere")
    with caplog.at_level(logging.INFO):
        state = label(missing, str(tmp_path / "out"), tiny_model, settings=SETTINGS, return_state=True)
    assert state.is_failed()
    assert missing in state.message
    assert "\n" not in state.message
    assert missing in caplog.text
    assert "Traceback" not in caplog.text
    assert "Retry" not in caplog.text


def test_an_output_of_an_unknown_scheme_fails_the_run_at_once(
    bucket: str, tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        state = label(bucket, "foo://labels", tiny_model, settings=SETTINGS, return_state=True)
    assert state.is_failed()
    assert "unknown scheme 'foo'" in state.message
    assert "Retry" not in caplog.text


def test_storage_that_stays_broken_is_tried_four_times_and_ends_without_a_traceback(
    bucket: str,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = []

    def refuse(*arguments: Any) -> bool:
        tries.append(arguments)
        raise StorageError("cannot write s3://user:hunter2-hunter2@bucket/out: refused")

    monkeypatch.setattr(ledger, "commit_part", refuse)
    with caplog.at_level(logging.INFO):
        state = label(bucket, str(tmp_path / "out"), tiny_model, settings=SETTINGS, return_state=True)
    assert state.is_failed()
    assert len(tries) == 4
    assert state.message.endswith("@bucket/out: refused")
    assert "Retry 3/" in caplog.text
    assert "hunter2" not in state.message + caplog.text
    assert "Traceback" not in caplog.text


def test_a_device_that_has_failed_is_not_tried_again_in_the_same_process(
    bucket: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail(*arguments: Any) -> Any:
        tries.append(arguments)
        raise DeviceError("the cuda device has failed (CUDA error: unspecified launch failure)")

    monkeypatch.setattr(Labeler, "judge", fail)
    settings = SETTINGS.model_copy(update={"batch_images": 64, "fetch_threads": 1})
    state = label(bucket, str(tmp_path / "out"), tiny_model, settings=settings, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("the cuda device has failed")
    assert len(tries) == 1
    assert not (tmp_path / "out" / "manifests").exists()


def test_what_the_library_logs_is_in_the_log_of_the_run_once_and_only_there(
    bucket: str, tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = list(logging.getLogger("segpipe").handlers)
    label(bucket, str(tmp_path / "out"), tiny_model, settings=SETTINGS)
    (planned,) = [record for record in caplog.records if record.getMessage().startswith("planned run")]
    assert planned.name == "prefect.task_runs"
    assert logging.getLogger("segpipe").handlers == before
