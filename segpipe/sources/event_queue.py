"""S3 event notifications from an SQS-compatible queue: which objects are new.

The body of a message is what S3 sends ("Records", Amazon S3 User Guide, "Event message structure"), the same
in an SNS envelope, or an EventBridge event ("detail"). A message is deleted only once it has been worked on;
what cannot be read stays, for the queue's own dead-letter rule.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from segpipe.errors import StorageError
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

_MESSAGES_AT_ONCE = 10  # the most that SQS gives
_WAIT_SECONDS = 1


@dataclass(frozen=True)
class Notification:
    """One message: the objects (URIs) it says were created; `receipt` is what to delete it by."""

    message_id: str
    receipt: str
    uris: tuple[str, ...]


class Queue:
    """An SQS queue by its URL; credentials and region come from the environment."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = _client(url)

    def receive(self, at_most: int) -> Iterator[Notification]:
        """The messages that wait, at most about so many; unreadable ones are left there and said.

        Raises StorageError when the queue cannot be read.
        """
        n_received = 0
        while n_received < at_most:
            answer = self._call(
                "receive_message", MaxNumberOfMessages=_MESSAGES_AT_ONCE, WaitTimeSeconds=_WAIT_SECONDS
            )
            messages = answer.get("Messages", [])
            n_received += len(messages)
            for message in messages:
                try:
                    uris = tuple(created_objects(message["Body"]))
                except ValueError as error:
                    logger.warning("message %s is left in the queue: %s", message["MessageId"], error)
                    continue
                yield Notification(message["MessageId"], message["ReceiptHandle"], uris)
            if not messages:
                return

    def delete(self, notification: Notification) -> None:
        """Take a message out of the queue. StorageError."""
        self._call("delete_message", ReceiptHandle=notification.receipt)

    def _call(self, operation: str, **options: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(QueueUrl=self._url, **options)
        except (BotoCoreError, ClientError) as error:
            raise _unusable(self._url, error) from None
        return answer


def _client(url: str) -> Any:
    address = urlsplit(url)
    session = botocore.session.get_session()
    region = session.get_config_variable("region") or os.environ.get("AWS_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_SQS") or f"{address.scheme}://{address.netloc}"
    try:
        return session.create_client("sqs", region_name=region, endpoint_url=endpoint)
    except (BotoCoreError, ValueError) as error:
        raise _unusable(url, error) from None


def _unusable(url: str, error: Exception) -> StorageError:
    return StorageError(
        redact(f"queue {url}: {error}; check its URL, the AWS_* variables and the queue's policy")
    )


def created_objects(body: str) -> list[str]:
    """URIs of the objects a message says were created; none for other events. ValueError when unreadable."""
    try:
        content = json.loads(body)
        if isinstance(content.get("Message"), str):  # an SNS envelope
            content = json.loads(content["Message"])
        if content.get("Event") == "s3:TestEvent":
            return []
        return list(_from_event_bridge(content) if "detail" in content else _from_s3(content))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no S3 event notification ({type(error).__name__}: {error})") from None


def _from_s3(content: dict[str, Any]) -> Iterator[str]:
    for record in content["Records"]:
        if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
            yield _uri(record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"]))


def _from_event_bridge(content: dict[str, Any]) -> Iterator[str]:
    detail = content["detail"]
    if content["detail-type"] == "Object Created":
        yield _uri(detail["bucket"]["name"], detail["object"]["key"])


def _uri(bucket: Any, key: Any) -> str:
    """TypeError for what is no text, UnicodeEncodeError for what JSON lets through and nothing can store."""
    if not isinstance(bucket, str) or not isinstance(key, str):
        raise TypeError("a bucket's name or a key is no text")
    f"{bucket}{key}".encode()
    return f"s3://{bucket}/{key}"
