"""Each refusal of a server is told with its own remedy, and as what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from s3_proxy import Action, Exchange, S3Proxy

from segpipe import storage
from segpipe.errors import ArchivedError, DeniedError, NotFoundError, StorageError
from segpipe.storage import retry


@pytest.fixture
def answered(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """Let every request from now on be answered with this status and these elements of an S3 error."""
    proxy = S3Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)

    def answer(status: int, elements: str) -> None:
        def act(exchange: Exchange) -> None:
            text = f"<?xml version='1.0'?><Error>{elements}</Error>".encode()
            headers = [("Content-Type", "application/xml"), ("x-amz-bucket-region", "eu-west-1")]
            exchange.send(status, headers, text)

        action: Action = act
        proxy.decide = lambda request: action

    yield answer
    proxy.close()


def test_an_object_in_cold_storage_says_in_which_class_it_is(answered: Callable[[int, str], None]) -> None:
    answered(
        403,
        "<Code>InvalidObjectState</Code><Message>The operation is not valid</Message>"
        "<StorageClass>DEEP_ARCHIVE</StorageClass>",
    )
    with pytest.raises(ArchivedError, match=r"s3://bucket/a: InvalidObjectState.*restore it") as caught:
        storage.read("s3://bucket/a")
    assert caught.value.storage_class == "DEEP_ARCHIVE"


def test_an_archived_object_without_a_class_is_archived_all_the_same(
    answered: Callable[[int, str], None],
) -> None:
    answered(403, "<Code>InvalidObjectState</Code><Message>no</Message>")
    with pytest.raises(ArchivedError) as caught:
        storage.read("s3://bucket/a")
    assert caught.value.storage_class is None


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "remedy"),
    [
        (
            403,
            "AccessDenied",
            "no identity-based policy allows kms:Decrypt",
            DeniedError,
            "kms:Decrypt on it",
        ),
        (400, "KMS.NotFoundException", "Invalid keyId", DeniedError, "encryption key"),
        (
            403,
            "AccessDenied",
            "This is a Requester Pays bucket",
            DeniedError,
            "REQUESTER_PAYS=true if you will",
        ),
        (301, "PermanentRedirect", "use the specified endpoint", StorageError, "set AWS_REGION"),
        (403, "RequestTimeTooSkewed", "too large", StorageError, "machine's clock"),
        (404, "NoSuchBucket", "no", NotFoundError, "bucket bucket does not exist; create it"),
    ],
)
def test_a_refusal_is_known_by_its_code_and_words(
    answered: Callable[[int, str], None],
    status: int,
    code: str,
    message: str,
    kind: type[Exception],
    remedy: str,
) -> None:
    answered(status, f"<Code>{code}</Code><Message>{message}</Message>")
    with pytest.raises(kind, match=remedy) as caught:
        storage.read("s3://bucket/a")
    assert type(caught.value) is kind


def test_an_unknown_profile_is_named(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.replace("127.0.0.1", "localhost") + "/")
    with pytest.raises(StorageError, match=r"no-such-profile.*; check AWS_PROFILE"):
        storage.read("s3://bucket/a")


def test_a_denied_file_is_denied(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a"))

    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DeniedError, match="check the path, its permissions"):
        storage.read(str(tmp_path / "a"))
