"""S3 event notifications on a real SQS server (moto)."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import boto3
import pytest

from segpipe.errors import StorageError
from segpipe.sources import event_queue
from segpipe.sources.event_queue import Queue, created_objects


def s3_event(*keys: str, name: str = "ObjectCreated:Put") -> str:
    """As the Amazon S3 User Guide has it, keys URL-encoded."""
    records = [
        {"eventName": name, "s3": {"bucket": {"name": "raw-1"}, "object": {"key": key, "size": 3}}}
        for key in keys
    ]
    return json.dumps({"Records": records})


@pytest.fixture
def queue(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """An SQS client and the URL of an empty queue whose messages come back at once."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", s3_server)
    monkeypatch.setattr(event_queue, "_WAIT_SECONDS", 0)  # nothing comes while it waits
    client = boto3.client("sqs", endpoint_url=s3_server)
    attributes = {"VisibilityTimeout": "0"}
    return client, client.create_queue(QueueName=f"queue-{uuid4().hex[:8]}", Attributes=attributes)[
        "QueueUrl"
    ]


@pytest.mark.parametrize(
    ("body", "uris"),
    [
        (s3_event("a/1.jpg", "b+c%2B%C3%A4.jpg"), ["s3://raw-1/a/1.jpg", "s3://raw-1/b c+ä.jpg"]),
        (s3_event("a.jpg", name="s3:ObjectCreated:Copy"), ["s3://raw-1/a.jpg"]),
        (s3_event("a.jpg", name="ObjectRemoved:Delete"), []),
        (json.dumps({"Event": "s3:TestEvent", "Bucket": "raw-1"}), []),
        (json.dumps({"Type": "Notification", "Message": s3_event("a.jpg")}), ["s3://raw-1/a.jpg"]),
        (
            json.dumps(
                {
                    "detail-type": "Object Created",
                    "detail": {"bucket": {"name": "raw-1"}, "object": {"key": "a b.jpg"}},
                }
            ),
            ["s3://raw-1/a b.jpg"],
        ),
    ],
)
def test_created_objects_are_read_from_every_kind_of_message(body: str, uris: list[str]) -> None:
    assert created_objects(body) == uris


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "3", '"text"', "{}", '{"Records": [{}]}', '{"detail": 1}']
)
def test_other_messages_are_refused(body: str) -> None:
    with pytest.raises(ValueError, match="no S3 event notification"):
        created_objects(body)


def test_a_message_stays_until_it_is_deleted(queue: tuple[Any, str]) -> None:
    client, url = queue
    for number in range(12):
        client.send_message(QueueUrl=url, MessageBody=s3_event(f"{number}.jpg"))
    expected = {f"s3://raw-1/{number}.jpg" for number in range(12)}
    client.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "30"})
    for _ in range(2):
        received = list(Queue(url).receive(at_most=40))
        assert {uri for notification in received for uri in notification.uris} == expected
        for notification in received:  # as if the 30 s were over
            client.change_message_visibility(
                QueueUrl=url, ReceiptHandle=notification.receipt, VisibilityTimeout=0
            )
    for notification in Queue(url).receive(at_most=40):
        Queue(url).delete(notification)
    client.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "0"})
    assert list(Queue(url).receive(at_most=10)) == []


def test_a_message_that_cannot_be_read_stays_and_is_said(
    queue: tuple[Any, str], caplog: pytest.LogCaptureFixture
) -> None:
    client, url = queue
    client.send_message(QueueUrl=url, MessageBody="poison")
    assert list(Queue(url).receive(at_most=1)) == []
    assert "is left in the queue: it is no S3 event notification" in caplog.text
    answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    assert answer["Attributes"]["ApproximateNumberOfMessages"] == "1"


def test_a_queue_that_does_not_exist_is_one_clear_line(queue: tuple[Any, str]) -> None:
    _, url = queue
    with pytest.raises(StorageError, match=r"queue .*absent: .*; check its URL") as caught:
        list(Queue(f"{url}-absent").receive(at_most=1))
    assert "\n" not in str(caught.value)
