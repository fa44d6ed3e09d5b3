"""Reading one object takes bounded bytes and bounded time, and never a pipe, whatever the storage says."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from s3_proxy import Exchange, Request, S3Proxy, pass_on

from segpipe import storage
from segpipe.errors import NotFoundError, StorageError, TooLargeError
from segpipe.storage import retry
from segpipe.storage.deadline import Deadline


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)


@dataclass
class Web:
    """A web server and what it says: length None is not told, pause is between bytes, in seconds."""

    url: str = ""
    body: bytes = b"hello"
    length: int | None = 5
    pause: float = 0.0
    status: int = 200
    stopping: threading.Event = field(default_factory=threading.Event)

    def say_headers(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(self.status)
        handler.send_header("Last-Modified", "Mon, 23 Nov 2026 12:00:00 GMT")
        if self.length is not None:
            handler.send_header("Content-Length", str(self.length))
        handler.end_headers()

    def say_all(self, handler: BaseHTTPRequestHandler) -> None:
        self.say_headers(handler)
        step = 1 if self.pause else 2**16
        with suppress(OSError):  # the client has hung up
            for start in range(0, len(self.body), step):
                handler.wfile.write(self.body[start : start + step])
                if self.stopping.wait(self.pause):
                    return


@pytest.fixture
def web() -> Iterator[Web]:
    said = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            said.say_headers(self)

        def do_GET(self) -> None:
            said.say_all(self)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.block_on_close = False
        said.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield said
        said.stopping.set()
        server.shutdown()


# --- bytes ---


def test_no_more_than_max_bytes_is_read(storage_root: str) -> None:
    uri = storage.join(storage_root, "a")
    storage.put(uri, b"12345")
    assert storage.read(uri, 5).data == b"12345"
    with pytest.raises(TooLargeError, match=r"a has more than 4 bytes"):
        storage.read(uri, 4)


def test_an_object_with_an_odd_key_has_the_same_bound(s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/a b"  # not by the quick way
    storage.put(uri, bytes(3_000_000))
    assert len(storage.read(uri, 3_000_000).data) == 3_000_000
    with pytest.raises(TooLargeError):
        storage.read(uri, 2_999_999)


def test_a_web_server_that_tells_no_length_is_not_read_on(web: Web) -> None:
    web.length, web.body = None, bytes(50_000_000)
    with pytest.raises(TooLargeError, match="more than 1000 bytes"):
        storage.read(f"{web.url}/a.png", 1000)


def test_a_large_object_by_the_quick_way_is_whole(s3_bucket: str) -> None:
    data = bytes(range(256)) * 70_000  # 18 MB: sent and fetched by the other way
    storage.put(f"s3://{s3_bucket}/large", data)
    blob = storage.read(f"s3://{s3_bucket}/large")
    assert blob.data == data
    assert blob.etag == boto3.client("s3").head_object(Bucket=s3_bucket, Key="large")["ETag"].strip('"')


# --- time ---


def trickle_body(exchange: Exchange) -> None:
    """All headers at once, then a byte every tenth of a second."""
    exchange.handler.send_response(200)
    for name, value in (
        ("Content-Length", "100000"),
        ("ETag", '"e"'),
        ("Last-Modified", "Mon, 23 Nov 2026 12:00:00 GMT"),
    ):
        exchange.handler.send_header(name, value)
    exchange.handler.end_headers()
    _drip(exchange, b"x" * 1000)


def trickle_headers(exchange: Exchange) -> None:
    """Not even the headers come to an end."""
    _drip(exchange, b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 1000)


def _drip(exchange: Exchange, data: bytes) -> None:
    exchange.handler.close_connection = True
    for number in range(len(data)):
        exchange.handler.wfile.write(data[number : number + 1])
        exchange.handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.parametrize("trickle", [trickle_body, trickle_headers])
@pytest.mark.parametrize("key", ["plain", "odd key"])
def test_an_s3_server_that_trickles_holds_no_reader(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, trickle: Callable[[Exchange], None], key: str
) -> None:
    proxy = S3Proxy(s3_server)
    proxy.decide = lambda request: trickle
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("SEGPIPE_STORAGE_OBJECT_SECONDS", "0.5")
    with pytest.raises(StorageError, match=rf"{key}: not done after 0.5 s.*SEGPIPE_STORAGE_OBJECT_SECONDS"):
        storage.read(f"s3://bucket/{key}")
    proxy.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda: storage.put("s3://bucket/a", b"x"),
        lambda: storage.create("s3://bucket/a", b"x"),
        lambda: storage.exists("s3://bucket/a"),
        lambda: storage.etag("s3://bucket/a"),
        lambda: list(storage.list_objects("s3://bucket/a")),
        lambda: storage.delete("s3://bucket/a"),
    ],
)
def test_an_s3_server_that_trickles_holds_nobody_else(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]
) -> None:
    proxy = S3Proxy(s3_server)
    proxy.decide = lambda request: trickle_headers
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("SEGPIPE_STORAGE_OBJECT_SECONDS", "0.5")
    with pytest.raises(StorageError, match=r"not done after 0\.5 s"):
        call()
    proxy.close()


LARGE = pa.table({"a": pa.array(np.random.default_rng(0).random(2_000_000)), "b": pa.array(range(2_000_000))})


@pytest.fixture
def tables(s3_bucket: str) -> str:
    """A bucket of one small Parquet file and one that is read in ranges."""
    for name, table in (("small", LARGE.slice(0, 100)), ("large", LARGE)):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.put(f"s3://{s3_bucket}/{name}.parquet", sink.getvalue().to_pybytes())
    return s3_bucket


@pytest.mark.parametrize("name", ["small", "large"])
def test_parquet_is_read_by_arrow_as_it_was_written(tables: str, name: str) -> None:
    filesystem, root = storage.arrow_filesystem(f"s3://{tables}")
    read = pq.read_table(f"{root}/{name}.parquet", columns=["b"], filesystem=filesystem)
    assert read["b"].equals(LARGE["b"].slice(0, read.num_rows))
    rows = ds.dataset([f"{root}/{name}.parquet"], filesystem=filesystem).count_rows(ds.field("b") < 10)
    assert rows == 10


def test_parquet_in_memory_is_read_in_ranges_too() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(LARGE, sink)
    storage.put("memory://tables/large.parquet", sink.getvalue().to_pybytes())
    filesystem, path = storage.arrow_filesystem("memory://tables/large.parquet")
    assert pq.read_table(path, filesystem=filesystem).equals(LARGE)
    storage.delete("memory://tables/large.parquet")


@pytest.mark.parametrize("name", ["small", "large"])
def test_an_s3_server_that_trickles_holds_no_reader_of_parquet(
    s3_server: str, tables: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = S3Proxy(s3_server)
    of_the_file = {"small": is_get, "large": is_of_a_range}[name]
    proxy.decide = lambda request: trickle_body if of_the_file(request) else pass_on
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("SEGPIPE_STORAGE_OBJECT_SECONDS", "2.5")
    filesystem, root = storage.arrow_filesystem(f"s3://{tables}")
    with pytest.raises(StorageError, match=rf"{name}\.parquet: not done after 2\.5 s"):
        pq.read_table(f"{root}/{name}.parquet", filesystem=filesystem)
    assert any(map(is_of_a_range, proxy.seen)) == (name == "large")
    proxy.close()


def is_get(request: Request) -> bool:
    return request.method == "GET"


def is_of_a_range(request: Request) -> bool:
    return "Range" in request.headers


def test_a_web_server_that_trickles_holds_no_reader(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.length, web.body, web.pause = 1000, b"x" * 1000, 0.1
    monkeypatch.setenv("SEGPIPE_STORAGE_OBJECT_SECONDS", "0.5")
    with pytest.raises(StorageError, match=r"not done after 0\.5 s"):
        storage.read(f"{web.url}/a.png")


def test_a_large_object_is_granted_more_time() -> None:
    deadline = Deadline("s3://bucket/a", seconds=100.0)
    assert 99 < deadline.left() <= 100
    assert 199 < deadline.left(10_000_000) <= 200
    late = Deadline("s3://bucket/a", seconds=100.0, started=time.monotonic() - 150)
    late.require_left(10_000_000)
    with pytest.raises(StorageError, match="s3://bucket/a: not done after 100 s"):
        late.require_left(1_000_000)


def test_a_slow_object_that_keeps_coming_is_read(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.length, web.body = 200_000, b"x" * 200_000
    monkeypatch.setenv("SEGPIPE_STORAGE_OBJECT_SECONDS", "30")
    assert len(storage.read(f"{web.url}/a.png").data) == 200_000


# --- what is no file ---


@pytest.fixture
def odd_files(tmp_path: Path) -> Iterator[dict[str, str]]:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "pipe.png", tmp_path / "link.png")
    os.symlink("/dev/zero", tmp_path / "device.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket is short
        listening.bind("socket.png")
        os.chdir(folder)
        yield {path.name: str(path) for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["pipe.png", "link.png", "device.png", "socket.png", "folder.png"])
def test_what_is_no_file_is_refused_and_never_waited_for(odd_files: dict[str, str], name: str) -> None:
    kind = "a folder" if name == "folder.png" else "a pipe, socket or device"
    with pytest.raises(StorageError, match=f"{name} is {kind} and no file"):
        storage.read(odd_files[name])


def test_a_pipe_that_is_put_there_at_the_last_moment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    real = os.open

    def swapped(name: str, flags: int, *more: Any, **options: Any) -> int:
        path.unlink()
        os.mkfifo(path)
        return real(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(StorageError, match="no file"):
        storage.read(str(path))


# --- the web ---


def test_a_file_of_a_web_server_is_read_and_known_by_its_time(web: Web) -> None:
    blob = storage.read(f"{web.url}/a.png")
    assert (blob.data, blob.etag) == (b"hello", "Mon, 23 Nov 2026 12:00:00 GMT-5")


@pytest.mark.parametrize(
    "call",
    [
        lambda url: list(storage.list_objects(url)),
        lambda url: storage.list_folders(url),
        lambda url: storage.put(f"{url}/a", b""),
        lambda url: storage.create(f"{url}/a", b""),
    ],
)
def test_what_no_web_server_can_do_is_said(web: Web, call: Callable[[str], Any]) -> None:
    with pytest.raises(StorageError, match=r"a web server (has no listing; copy|takes no files; write)"):
        call(web.url)


def test_a_refused_connection_is_no_absence(unused_port: int) -> None:
    for call in (storage.read, storage.exists):
        with pytest.raises(StorageError) as caught:
            call(f"http://127.0.0.1:{unused_port}/a.png")
        assert not isinstance(caught.value, NotFoundError)
        assert "does not exist" not in str(caught.value)


def test_a_web_servers_trouble_is_tried_again_and_its_absence_is_not(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "segpipe")
    web.status = 503
    with pytest.raises(StorageError) as caught:
        storage.read(f"{web.url}/a.png")
    assert not isinstance(caught.value, NotFoundError)
    assert "attempt 5 of 6" in caplog.text
    caplog.clear()
    web.status = 404
    with pytest.raises(NotFoundError):
        storage.read(f"{web.url}/a.png")
    assert not storage.exists(f"{web.url}/a.png")
    assert caplog.text == ""


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
