"""The fast way to S3 does what s3fs would do, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs

from segpipe import storage
from segpipe.errors import NotFoundError, StorageError
from segpipe.storage import s3_transfer


def filesystem(endpoint: str | None = None, **options: Any) -> s3fs.S3FileSystem:
    timeouts = {"connect_timeout": 5, "read_timeout": 5}
    return s3fs.S3FileSystem(endpoint_url=endpoint, config_kwargs=timeouts, **options)


def test_what_is_sent_is_what_s3_holds_and_comes_back_with_its_etag(s3_bucket: str) -> None:
    assert s3_transfer.send(filesystem(), s3_bucket, "masks/a_b-c.jpg.png", b"mask")

    stored = boto3.client("s3").get_object(Bucket=s3_bucket, Key="masks/a_b-c.jpg.png")
    assert stored["Body"].read() == b"mask"
    found = s3_transfer.fetch(filesystem(), s3_bucket, "masks/a_b-c.jpg.png")
    assert found == (b"mask", stored["ETag"].strip('"'))


def test_an_empty_object_is_an_object(s3_bucket: str) -> None:
    assert s3_transfer.send(filesystem(), s3_bucket, "empty", b"")
    data, etag = s3_transfer.fetch(filesystem(), s3_bucket, "empty") or (None, None)
    assert (data, etag) == (b"", "d41d8cd98f00b204e9800998ecf8427e")  # the MD5 of nothing


@pytest.mark.parametrize(
    "key",
    ["/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "a b", "a%20b", "a?b", "a#b", "ä", ""],
)
def test_keys_that_would_be_spelled_otherwise_are_left_to_s3fs(s3_bucket: str, key: str) -> None:
    assert not s3_transfer.send(filesystem(), s3_bucket, key, b"data")
    assert s3_transfer.fetch(filesystem(), s3_bucket, key) is None
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=s3_bucket)


@pytest.mark.parametrize("key", ["a", "a.b", ".a", "...", "a/.b/..c/d..", "run_date=2026-01-01/x~0a.parquet"])
def test_plain_keys_take_the_fast_way(s3_bucket: str, key: str) -> None:
    assert s3_transfer.send(filesystem(), s3_bucket, key, b"data")
    (stored,) = boto3.client("s3").list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert stored["Key"] == key


@pytest.mark.parametrize("option", [{"anon": True}, {"key": "k", "secret": "s"}])
def test_credentials_and_options_of_fsspec_are_left_to_s3fs(s3_bucket: str, option: dict[str, Any]) -> None:
    assert not s3_transfer.send(filesystem(**option), s3_bucket, "a", b"data")


def test_missing_objects_and_buckets_are_told_apart_as_before(s3_bucket: str) -> None:
    assert s3_transfer.fetch(filesystem(), s3_bucket, "absent") is None
    with pytest.raises(NotFoundError, match="absent does not exist"):
        storage.read(f"s3://{s3_bucket}/absent")
    with pytest.raises(NotFoundError, match="bucket no-such-bucket does not exist"):
        storage.put("s3://no-such-bucket/a", b"")


@pytest.fixture
def failing_server() -> Iterator[tuple[str, list[str]]]:
    """URL of a server that answers 500 to everything, and the requests it has had."""
    requests: list[str] = []

    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


def test_it_gives_up_for_good_where_it_never_works(
    s3_bucket: str, failing_server: tuple[str, list[str]]
) -> None:
    url, requests = failing_server
    for _ in range(20):
        assert s3_transfer.fetch(filesystem(url), "bucket", "key") is None
    assert len(requests) == 8


def test_a_bundle_of_certificates_that_is_not_there_is_left_to_s3fs(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert s3_transfer.fetch(filesystem("https://127.0.0.1:1"), s3_bucket, "key") is None


def test_without_credentials_the_error_is_that_of_s3fs(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    s3_transfer._bucket.cache_clear()
    s3_transfer._store.cache_clear()
    try:
        with pytest.raises(StorageError, match="credentials"):
            storage.put("s3://bucket/key", b"data")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        s3_transfer._bucket.cache_clear()
        s3_transfer._store.cache_clear()
