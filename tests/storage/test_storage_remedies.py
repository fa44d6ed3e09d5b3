"""Each refusal of a server is told with its own remedy, and as what it is."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.exceptions import EndpointConnectionError
from s3_proxy import Action, Exchange, S3Proxy

from segpipe import storage
from segpipe.errors import ArchivedError, DeniedError, NotFoundError, StorageError
from segpipe.storage import retry
from segpipe.storage.remedies import remedy_of


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
    with pytest.raises(DeniedError, match=r"; check the permissions of it and its folders for the user "):
        storage.read(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room on its disk"),
        (errno.EDQUOT, "or within the quota"),
        (errno.EROFS, "remount it writable"),
        (errno.EACCES, "check the permissions of it and its folders for the user"),
        (errno.EIO, "check the path, its permissions and the disk"),
    ],
)
@pytest.mark.parametrize("write", [storage.put, storage.create])
@pytest.mark.parametrize("refused", ["builtins.open", "os.fsync"])
def test_a_disk_that_refuses_has_a_remedy_of_its_own_and_no_private_name(
    tmp_path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, write, refused: str
) -> None:
    def refuse(file: object, *_: object) -> None:
        raise OSError(number, os.strerror(number), file if refused == "builtins.open" else None)

    monkeypatch.setattr(refused, refuse)
    with pytest.raises(StorageError, match=remedy) as told:
        write(uri := str(tmp_path / "out" / "a"), b"x")
    monkeypatch.undo()
    assert str(told.value).startswith(f"{uri}: ")
    assert os.strerror(number) in str(told.value)
    assert ".segpipe-tmp-" not in str(told.value)


# --- surroundings ---


class Web(BaseHTTPRequestHandler):
    """A web server that has nothing and says so in HTML."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def web() -> Iterator[str]:
    """HOST:PORT of a web server that is no S3."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


CALLS = {
    "list": lambda: list(storage.list_objects("s3://bucket/x")),
    "read": lambda: storage.read("s3://bucket/x/a"),
    "put": lambda: storage.put("s3://bucket/x/a", b"1"),
}


def said_by(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    with pytest.raises(StorageError) as refused:
        call()
    assert type(refused.value) is StorageError  # and so worth another try, unlike an object that is not there
    return str(refused.value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_web_server_is_no_s3_server(s3_server: str, web: str, call, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{web}")
    assert said_by(call, monkeypatch).endswith("what answers there is no S3 server, check AWS_ENDPOINT_URL")


def test_a_server_without_tls_is_told_from_one_that_is_not_trusted(
    s3_server: str, web: str, monkeypatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{web}")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    assert "speaks no TLS there, write http:// in AWS_ENDPOINT_URL" in said_by(CALLS["read"], monkeypatch)


def test_a_host_that_there_is_not_is_named(s3_server: str, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    said = said_by(CALLS["list"], monkeypatch)
    assert said.endswith(
        "there is no host no-such-host.invalid:9000, check AWS_ENDPOINT_URL and the network's names (DNS)"
    )


def test_amazons_own_host_is_a_matter_of_the_region() -> None:
    url = "https://bucket.s3.eu-cental-1.amazonaws.com/x"
    error = EndpointConnectionError(endpoint_url=url, error=TimeoutError())
    assert remedy_of(error, "s3://bucket/x") == (
        "no answer from bucket.s3.eu-cental-1.amazonaws.com, check AWS_REGION and the network"
    )


def test_a_region_that_is_none_is_named(s3_server: str, monkeypatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu west 1")
    assert "set AWS_REGION to the bucket's region" in said_by(CALLS["list"], monkeypatch)


@pytest.mark.parametrize(
    "url",
    [
        "minio:9000",
        "http//minio:9000",
        "http:/minio",
        "http://",
        "http://minio:99999",
        "http://a b",
        "ftp://a",
    ],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_url_is_said_before_anything_is_asked(
    s3_server: str, url: str, name: str, monkeypatch
) -> None:
    monkeypatch.setenv(name, url)
    for call in CALLS.values():
        assert (
            said_by(call, monkeypatch) == f"{name} is {url!r}: give http:// or https://, then host and port"
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "which is not there"), (b"", "no certificates"), (b"hello", "no certificates")],
)
def test_a_bundle_of_certificates_that_is_none_is_named(
    s3_server: str, tmp_path, content: bytes | None, said: str, monkeypatch
) -> None:
    bundle = tmp_path / "authority.pem"
    if content is not None:
        bundle.write_bytes(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    for call in CALLS.values():
        line = said_by(call, monkeypatch)
        assert line.startswith(f"AWS_CA_BUNDLE names {bundle}, which ")
        assert said in line
        assert line.endswith("give the PEM file of your authority, or unset it")
