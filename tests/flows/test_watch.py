"""The watch and the nightly flow on a real Prefect server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import numpy as np
import pandas as pd
import pytest
from audited_output import audited_output
from growing_output import growing_output
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

from flows.nightly import label_sources
from flows.watch import watch
from segpipe import storage
from segpipe.manifests.policies import grown_numbers, grown_uri, is_suspended, kept_uri, suspend
from segpipe.sources.announcements import message_id
from segpipe.sources.sources_file import find_sources, read_sources

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def picture(encoded: Callable[..., bytes]) -> bytes:
    return encoded(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.fixture
def sources(tmp_path: Path, picture: bytes, tiny_model: str) -> str:
    """A sources file over two folders of one picture each."""
    for name in ("a", "b"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "1.png").write_bytes(picture)
    return write_sources(tmp_path, tiny_model)


def write_sources(folder: Path, model: str, more: str = "") -> str:
    file = folder / f"sources-{uuid4().hex[:8]}.toml"
    file.write_text(
        f"""
        state = "{folder}/state"
        {more.partition("---")[0]}
        [[source]]
        pattern = "{folder}/raw/*"
        output = "{folder}/labels/{{name}}"
        model = "{model}"
        settings = {{ device = "cpu", shard_images = 2 }}
        {more.partition("---")[2]}
        """
    )
    return str(file)


def heard_of_all(sources: str) -> dict[str, list[Any]]:
    """What the server has heard, by source, once it has stored something about each."""
    deadline = time.monotonic() + 60  # it writes events every 5 s
    while not all((heard := events_about(sources)).values()):
        assert time.monotonic() < deadline, f"nothing was heard: {heard}"
        time.sleep(0.2)
    return heard


def events_about(sources: str) -> dict[str, list[Any]]:
    """What the server has stored, by source."""
    found, _ = find_sources(read_sources(sources))
    heard = {}
    with get_client(sync_client=True) as client:
        for source in found:
            chosen = EventFilter(
                event=EventNameFilter(name=["segpipe.bucket.discovered"]),
                resource=EventResourceFilter(id=[f"segpipe.source.{source.digest}"]),
            )
            heard[source.url] = client.read_events(chosen, limit=50).events
    return heard


def artifact(state: State, key: str) -> list[dict[str, Any]]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        found = {one.key: one.data for one in client.read_artifacts(artifact_filter=wanted)}
    return json.loads(str(found[key]))


def test_each_new_folder_is_announced_once_with_what_labelling_needs(
    sources: str, tmp_path: Path, tiny_model: str, picture: bytes
) -> None:
    assert watch(sources)["announced"] == [f"{tmp_path}/raw/a", f"{tmp_path}/raw/b"]
    assert watch(sources)["announced"] == []
    (tmp_path / "raw" / "c").mkdir()
    assert watch(sources)["announced"] == []  # nothing in it yet
    (tmp_path / "raw" / "c" / "1.png").write_bytes(picture)
    assert watch(sources)["announced"] == [f"{tmp_path}/raw/c"]

    heard = heard_of_all(sources)
    assert {url: len(events) for url, events in heard.items()} == dict.fromkeys(heard, 1)
    found, _ = find_sources(read_sources(sources))
    for source in found:
        (event,) = heard[source.url]
        assert event.id == message_id(source)
        assert event.payload == {
            "source": source.url,
            "output": source.output,
            "model": tiny_model,
            "settings": {"shard_images": 2, "device": "cpu"},
        }


def test_a_watch_killed_after_sending_does_not_send_again(sources: str, tmp_path: Path) -> None:
    watch(sources)
    heard_of_all(sources)
    for note in (tmp_path / "state" / "announced").iterdir():
        note.unlink()  # as if it had been killed before the note
    assert watch(sources)["announced"] == []
    assert [len(events) for events in events_about(sources).values()] == [1, 1]


def test_a_sources_file_without_sources_is_no_failure_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sources.toml").write_text("# nothing yet\n")
    for flow, key in ((watch, "watch-sources"), (label_sources, "label-sources")):
        caplog.clear()
        state = flow(str(tmp_path / "sources.toml"), return_state=True)
        assert state.is_completed()
        (row,) = artifact(state, key)
        assert row["state"].startswith("names no source")
        assert "sources.toml names no source" in caplog.text


def test_a_bad_entry_stops_no_other_and_is_named(tmp_path: Path, sources: str, tiny_model: str) -> None:
    bad = write_sources(
        tmp_path, tiny_model, '---[[source]]\npattern = "/absent/*"\noutput = "/x"\nmodel = "/m"'
    )
    state = watch(bad, return_state=True)
    assert state.is_failed()
    assert "/absent/*: /absent/ does not exist" in str(state.message)
    assert [row["state"] for row in artifact(state, "watch-sources")][:2] == ["announced", "announced"]


def test_new_images_that_a_queue_tells_of_start_their_source_again(
    s3_bucket: str, s3_server: str, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", s3_server)
    client = boto3.client("sqs", endpoint_url=s3_server)
    queue = client.create_queue(QueueName=s3_bucket)["QueueUrl"]
    s3 = boto3.client("s3")
    arn = client.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    wanted = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
    s3.put_bucket_notification_configuration(Bucket=s3_bucket, NotificationConfiguration=wanted)
    file = tmp_path / "sources.toml"
    file.write_text(
        f'state = "{tmp_path}/state"\nqueue = "{queue}"\n[[source]]\npattern = "s3://{s3_bucket}/raw/*"\n'
        f'output = "{tmp_path}/labels"\nmodel = "{tiny_model}"\n'
    )
    s3.put_object(Bucket=s3_bucket, Key="raw/day 1/1.jpg", Body=b"image")
    s3.put_object(Bucket=s3_bucket, Key="raw/day 1/2.jpg", Body=b"image")
    s3.put_object(Bucket=s3_bucket, Key="elsewhere/2.jpg", Body=b"image")
    first = watch(str(file))
    s3.put_object(Bucket=s3_bucket, Key="raw/day 1/3.jpg", Body=b"image")
    second = watch(str(file))
    third = watch(str(file))

    url = f"s3://{s3_bucket}/raw/day 1"
    assert set(first["announced"]) == {url}
    assert second["announced"] == [url]
    assert third["announced"] == []


def test_a_night_labels_every_source_and_says_which_failed(
    tmp_path: Path, sources: str, tiny_model: str
) -> None:
    more = '---[[source]]\npattern = "/absent"\noutput = "/x"\nmodel = "/m"\n[[source]]\npattern = "b"'
    state = label_sources(write_sources(tmp_path, tiny_model, more), return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("2 of 4 failed: b: output: Field required; /absent")
    for name in ("a", "b"):
        assert len(pd.read_parquet(tmp_path / "labels" / name / "manifests")) == 1
    table = artifact(state, "label-sources")
    assert [(row["state"], row.get("planned")) for row in table[:2]] == [("Completed", 1), ("Completed", 1)]

    again = label_sources(sources)
    assert [summary["planned"] for summary in again] == [0, 0]


def test_a_night_suspends_a_promise_that_audits_show_broken_and_alarms_once(
    tmp_path: Path, sources: str
) -> None:
    """Beside a policy that cannot be read, which it names."""
    output = audited_output(str(tmp_path / "labels" / "a"))
    output.answer(output.label_nights(4, 10), "rejected")
    damaged = kept_uri(output.output, "0" * 12)
    storage.put(damaged, b"{")
    state = label_sources(sources, return_state=True)
    assert state.is_failed()
    assert str(state.message).count(f"{damaged} is not JSON") == 1
    assert f"{tmp_path}/labels/a: BROKEN: bad share 1 (40 bad of 40)" in str(state.message)
    storage.delete(damaged)
    assert is_suspended(output.output, output.policy.policy_id)
    for name, n_rows in (("a", 41), ("b", 1)):
        assert len(pd.read_parquet(tmp_path / "labels" / name / "manifests")) == n_rows
    said = [row["state"] for row in artifact(state, "label-sources")[2:]]
    assert ["BROKEN" in text for text in said] == [True, False]
    assert [summary["planned"] for summary in label_sources(sources)] == [0, 0]


def test_a_night_lets_certificates_grow_before_it_labels_and_a_damaged_one_fails_it(
    tmp_path: Path, sources: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = growing_output(str(tmp_path / "labels" / "a"))
    out.said(out.drawn(60, 0.5), bad=False)
    assert [summary["planned"] for summary in label_sources(sources)] == [1, 1]
    assert grown_numbers(out.output, out.policy.policy_id) == [1]
    storage.put(grown_uri(out.output, out.policy.policy_id, 2), b"{}")
    state = label_sources(sources, return_state=True)
    assert f"{out.output}: the policy of model {out.policy.model_id} cannot grow: " in str(state.message)
    suspend(out.output, out.policy.policy_id, "{}")  # which failed the run when it was found
    assert [summary["planned"] for summary in label_sources(sources)] == [0, 0]
    assert f"policy {out.policy.policy_id} of model {out.policy.model_id} is suspended" in caplog.text


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for flow in (watch, label_sources):
        state = flow(str(tmp_path / "absent.toml"), return_state=True)
        assert state.is_failed()
        assert "absent.toml does not exist" in str(state.message)
