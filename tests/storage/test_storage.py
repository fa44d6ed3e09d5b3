from __future__ import annotations

import http.client
import inspect
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from fsspec.registry import known_implementations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segpipe import storage
from segpipe.errors import (
    AddressError,
    AlreadyExistsError,
    ArchivedError,
    DeniedError,
    NotFoundError,
    StorageError,
)
from segpipe.redaction import redact
from segpipe.storage import retry

ODD_KEYS = [
    "a b.jpg",
    "ä/ö ü/日本.png",
    "a?versionId=1.jpg",
    "a?b#c%20d&e=f.jpg",
    "*[0-9]{x,y}.jpg",
    "s3::zip:inner.jpg",
    "~/$HOME/'quoted\".jpg",
    "back\\slash+plus.jpg",
    ".hidden/_underscore.jpg",
    "a!.jpg",
    "a/x.jpg",
]


def keys(root: str) -> list[str]:
    return [item.key for item in storage.list_objects(root)]


@pytest.fixture
def frequent_thread_switches():
    """Python switches threads every microsecond, so that two steps that must be one get a thread between."""
    previous = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(previous)


# --- one suite for every kind of storage ---


def test_what_is_put_is_listed_and_read_back(storage_root):
    uri = storage.join(storage_root, "a/b.bin")
    storage.put(uri, b"first")
    storage.put(uri, b"second!")
    [item] = storage.list_objects(storage_root)
    assert (item.uri, item.key, item.size) == (uri, "a/b.bin", 7)
    blob = storage.read(uri)
    assert (blob.data, blob.etag) == (b"second!", item.etag)
    assert blob.etag
    assert '"' not in blob.etag
    assert storage.read_bytes(uri) == b"second!"


def test_new_bytes_have_a_new_etag(storage_root):
    uri = storage.join(storage_root, "a.bin")
    storage.put(uri, b"one")
    before = storage.read(uri).etag
    storage.put(uri, b"three")
    assert storage.read(uri).etag != before


def test_odd_keys_round_trip(storage_root):
    for key in ODD_KEYS:
        storage.put(storage.join(storage_root, key), key.encode())
    assert keys(storage_root) == sorted(ODD_KEYS)
    for item in storage.list_objects(storage_root):
        assert item.uri == storage.join(storage_root, item.key)
        blob = storage.read(item.uri)
        assert (blob.data, blob.etag) == (item.key.encode(), item.etag)
        assert storage.exists(item.uri)
        with pytest.raises(AlreadyExistsError):
            storage.create(item.uri, b"")
        storage.delete(item.uri)
        assert not storage.exists(item.uri)


KEY_CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/")
KEY_SEGMENT = st.text(KEY_CHARACTERS, min_size=1, max_size=20).filter(
    lambda text: text not in (".", "..") and not text.startswith(storage.TEMPORARY_PREFIX)
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(KEY_SEGMENT, min_size=1, max_size=3), st.binary(max_size=100))
def test_any_key_and_bytes_round_trip(storage_root, segments, data):
    root = storage.join(storage_root, uuid4().hex)  # one of its own for every example
    uri = storage.join(root, "/".join(segments))
    storage.put(uri, data)
    assert keys(root) == ["/".join(segments)]
    assert storage.read_bytes(uri) == data


def test_listing_a_folder_gives_keys_below_it_and_no_neighbours(storage_root):
    for key in ("in/a.jpg", "in/b/c.jpg", "in-2/d.jpg", "inner.jpg"):
        storage.put(storage.join(storage_root, key), b"x")
    assert keys(storage.join(storage_root, "in")) == ["a.jpg", "b/c.jpg"]
    assert keys(storage.join(storage_root, "in") + "/") == ["a.jpg", "b/c.jpg"]


def test_an_existing_empty_root_lists_nothing(storage_root):
    assert keys(storage_root) == []


def test_a_file_is_no_folder(storage_root):
    uri = storage.join(storage_root, "one.jpg")
    storage.put(uri, b"x")
    with pytest.raises(StorageError, match=r"one.jpg is a file, give its folder$"):
        keys(uri)


def test_unfinished_files_are_not_listed(storage_root):
    for key in ("a/.segpipe-tmp-123", ".segpipe-tmp-4", "a/b.segpipe-tmp-5"):
        storage.put(storage.join(storage_root, key), b"x")
    assert keys(storage_root) == ["a/b.segpipe-tmp-5"]


def test_absent_objects(storage_root):
    uri = storage.join(storage_root, "no/such.jpg")
    assert not storage.exists(uri)
    storage.delete(uri)
    for function in (storage.read, storage.read_bytes):
        with pytest.raises(NotFoundError) as caught:
            function(uri)
        assert uri in str(caught.value)


def test_a_folder_is_not_an_object(storage_root):
    storage.put(storage.join(storage_root, "folder/a.jpg"), b"x")
    assert not storage.exists(storage.join(storage_root, "folder"))


def test_create_never_overwrites(storage_root):
    uri = storage.join(storage_root, "parts/0.parquet")
    storage.create(uri, b"first")
    with pytest.raises(AlreadyExistsError, match="already exists"):
        storage.create(uri, b"second")
    with pytest.raises(AlreadyExistsError):
        storage.create(uri, b"first")
    assert storage.read_bytes(uri) == b"first"


@pytest.mark.usefixtures("frequent_thread_switches")
def test_of_eight_racing_creators_one_wins(storage_root):
    for turn in range(5):
        uri = storage.join(storage_root, f"race/{turn}")
        start = threading.Barrier(8)

        def race(number: int, uri: str = uri, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                storage.create(uri, f"writer {number}".encode())
            except AlreadyExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == f"writer {won.index(True)}".encode()
    assert len(keys(storage_root)) == 5


def test_in_memory_a_creator_that_comes_in_between_wins():
    uri = f"memory://{uuid4().hex}/a"

    class Interrupted(bytes):
        def __bool__(self) -> bool:  # asked while the file is made, after any look at what is there
            storage.create(uri, b"first")
            return True

    with pytest.raises(AlreadyExistsError):
        storage.create(uri, Interrupted(b"second"))
    assert storage.read_bytes(uri) == b"first"


def test_racing_writers_leave_one_whole_object(storage_root):
    uri = storage.join(storage_root, "same")
    contents = [bytes([number]) * 200_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: storage.put(uri, data), contents))
    assert storage.read_bytes(uri) in contents
    assert keys(storage_root) == ["same"]


def test_arrow_reads_what_was_put(storage_root):
    for number in range(2):
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table({"n": [number]}), sink)
        storage.put(storage.join(storage_root, f"manifests/{number}.parquet"), sink.getvalue().to_pybytes())
    filesystem, path = storage.arrow_filesystem(storage.join(storage_root, "manifests"))
    table = pa.dataset.dataset(path, filesystem=filesystem, format="parquet").to_table()
    assert sorted(table["n"].to_pylist()) == [0, 1]


# --- URLs ---


def test_normalise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/ada")
    assert storage.normalise("images/") == f"{tmp_path}/images"
    assert storage.normalise(Path("a/../b")) == f"{tmp_path}/b"
    assert storage.normalise("file:///data/a b/") == "/data/a b"
    assert storage.normalise("~/images") == "/users/ada/images"
    assert storage.normalise("/") == "/"
    assert storage.normalise("s3://bucket/a//b?c/") == "s3://bucket/a//b?c"
    assert storage.normalise("S3A://bucket") == "s3://bucket"
    assert storage.normalise("memory://x/y/") == "memory://x/y"
    for url in ("/data/x", "s3://bucket/k"):
        assert storage.normalise(storage.normalise(url)) == url


def test_urls_that_cannot_be_kept_are_refused():
    with pytest.raises(StorageError, match="names no folder"):
        storage.normalise("s3://")
    with pytest.raises(StorageError, match="names no folder"):
        storage.normalise("")
    with pytest.raises(StorageError, match="password") as caught:
        storage.normalise("s3://ada:hunter2secret@bucket/a")
    assert "hunter2secret" not in str(caught.value)


def test_join_keeps_the_key():
    assert storage.join("s3://b/p", "a?b#c::d//e/../f") == "s3://b/p/a?b#c::d//e/../f"
    assert storage.join("/", "a") == "/a"
    assert storage.join("/data", "a b/c.jpg") == "/data/a b/c.jpg"


@pytest.mark.parametrize("key", ["../up.png", "a/../../up.png", "/abs.png", "a//b.png", "./a.png", ""])
def test_join_refuses_keys_that_leave_a_local_folder_or_share_a_file(key):
    with pytest.raises(StorageError, match="no path below"):
        storage.join("/data", key)


def test_unknown_schemes_and_missing_packages_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="unknown scheme 's4'"):
        storage.read("s4://bucket/key")
    with pytest.raises(StorageError, match="unknown scheme 'simplecache::s3'"):
        storage.put("simplecache::s3://bucket/key", b"")
    monkeypatch.setitem(
        known_implementations,
        "absent",
        {"class": "absent_package.X", "err": "Install absent_package"},
    )
    with pytest.raises(StorageError, match="needs another package: Install absent_package"):
        keys("absent://bucket")
    assert os.listdir(tmp_path) == []


class _Shelf(fsspec.spec.AbstractFileSystem):
    """A store of someone else's make: no ETag, no time, no exclusive create."""

    protocol = "shelf"

    def _info(self) -> dict[str, object]:
        return {"name": "box/a", "size": 1, "type": "file"}

    def info(self, path, **_):
        return self._info() if path.endswith("/a") else {"name": path, "size": 0, "type": "directory"}

    def find(self, path, **_):
        return {"box/a": self._info()}


def test_storage_that_cannot_keep_our_promises_is_refused():
    fsspec.register_implementation("shelf", _Shelf, clobber=True)
    with pytest.raises(StorageError, match="no ETag or time"):
        keys("shelf://box")
    with pytest.raises(StorageError, match="no exclusive create"):
        storage.create("shelf://box/a", b"")


# --- local files ---


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="missing does not exist"):
        keys(str(tmp_path / "missing"))
    with pytest.raises(NotFoundError, match="memory://missing-folder does not exist"):
        keys("memory://missing-folder")


def test_local_etags_come_from_modification_time_and_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1234567890")
    os.utime(path, ns=(0, 255))
    assert storage.read(str(path)).etag == "ff-a"  # 255 ns and 10 bytes, in hexadecimal


def test_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"x")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "self").symlink_to("self")
    assert keys(str(root)) == ["link/a.jpg", "sub/self"]
    with pytest.raises(StorageError):
        storage.read(str(root / "sub" / "self"))


def test_local_listing_is_sorted_by_whole_key_and_skips_pipes(tmp_path):
    for key in ("a/x", "a!", "a.b/y", "a0", "b"):
        storage.put(storage.join(str(tmp_path), key), b"")
    os.mkfifo(tmp_path / "pipe")
    assert keys(str(tmp_path)) == ["a!", "a.b/y", "a/x", "a0", "b"]


def test_folders_nested_deeper_than_python_recurses_are_listed(tmp_path):
    storage.put(f"{tmp_path}/{'d/' * 200}a", b"x")
    previous = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = keys(str(tmp_path))
    finally:
        sys.setrecursionlimit(previous)
    assert found == [f"{'d/' * 200}a"]


def test_a_failed_local_write_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        storage.put(str(tmp_path / "folder"), b"x")
    (tmp_path / "file").write_bytes(b"x")
    for write in (storage.put, storage.create):
        with pytest.raises(StorageError, match="a file is where a folder is needed") as caught:
            write(str(tmp_path / "file" / "a"), b"x")
        assert not isinstance(caught.value, AlreadyExistsError)
    with pytest.raises(StorageError):
        storage.put(str(tmp_path / ("x" * 300)), b"x")
    with pytest.raises(StorageError, match="null"):
        storage.put(f"{tmp_path}/a\0b", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    child = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(str(path),))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert storage.read_bytes(str(path)) == b"old"
    assert keys(str(tmp_path)) == ["a"]
    assert sorted(name[:13] for name in os.listdir(tmp_path)) == [".segpipe-tmp-", "a"]


def _die_while_writing(path: str) -> None:
    os.fsync = lambda _: os._exit(9)  # power fails before the data is on disk
    storage.put(path, b"new")


def test_put_replaces_a_file_in_one_step_and_never_writes_into_it(tmp_path):
    path, reader = tmp_path / "a", tmp_path / "reader"
    path.write_bytes(b"old")
    os.link(path, reader)  # stands for whoever has the old file open
    storage.put(str(path), b"new")
    assert (path.read_bytes(), reader.read_bytes()) == (b"new", b"old")


def test_files_are_created_with_the_users_usual_rights(tmp_path):
    previous = os.umask(0o027)
    try:
        storage.put(str(tmp_path / "a"), b"x")
        storage.create(str(tmp_path / "b"), b"x")
    finally:
        os.umask(previous)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


def test_create_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    test_of_eight_racing_creators_one_wins(str(tmp_path))
    test_create_never_overwrites(str(tmp_path))


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    real, calls = os.fstat, []

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:  # between reading the bytes and looking at the file again
            path.write_bytes(b"afterwards")
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    blob = storage.read(str(path))
    monkeypatch.undo()
    assert blob.data == b"afterwards"
    assert blob.etag == next(iter(storage.list_objects(str(tmp_path)))).etag


def test_names_that_are_not_utf8_are_left_out_counted_and_named(tmp_path, caplog):
    (tmp_path / "good.jpg").write_bytes(b"x")
    os.mkdir(os.fsencode(tmp_path) + b"/folder\xe9")
    for name in (b"bad\xff.jpg", b"folder\xe9/a.jpg", b"folder\xe9/b.jpg"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    left_out = []
    found = [item.key for item in storage.list_objects(str(tmp_path), left_out.append)]
    assert (found, len(left_out)) == (["good.jpg"], 3)
    said = r"are not UTF-8, bad\udcff.jpg for example: they are left out, rename them"
    assert caplog.messages == [f"3 names below {tmp_path} {said}"]


def test_an_address_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(AddressError, match="is not UTF-8; rename the folder"):
        storage.normalise(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))


# --- S3 ---


def test_a_missing_bucket_is_named(s3_server):
    for call in (
        lambda: keys("s3://no-such-bucket/x"),
        lambda: storage.read("s3://no-such-bucket/x"),
        lambda: storage.put("s3://no-such-bucket/x", b""),
        lambda: storage.create("s3://no-such-bucket/x", b""),
    ):
        with pytest.raises(NotFoundError, match="bucket no-such-bucket does not exist; create it"):
            call()
    assert not storage.exists("s3://no-such-bucket/x")
    storage.delete("s3://no-such-bucket/x")


def test_a_prefix_without_objects_lists_nothing(s3_bucket):
    assert keys(f"s3://{s3_bucket}/nothing/here") == []


def test_s3_etag_is_the_md5_without_quotes(s3_bucket):
    storage.put(f"s3://{s3_bucket}/a", b"hello")
    assert storage.read(f"s3://{s3_bucket}/a").etag == "5d41402abc4b2a76b9719d911017c592"


def test_directory_markers_are_skipped_and_odd_slashes_kept(s3_bucket):
    root = f"s3://{s3_bucket}/in"
    for key in ("", "folder/", "folder/a", "b//c", "../d", "x::s3://d", "with-bytes/"):
        storage.put(f"{root}/{key}", b"x" if key == "with-bytes/" or key[-1:].isalpha() else b"")
    assert keys(root) == ["../d", "b//c", "folder/a", "with-bytes/", "x::s3://d"]
    for item in storage.list_objects(root):
        assert storage.read(item.uri).etag == item.etag


def test_a_listing_of_many_pages_is_whole_and_streams(s3_bucket):
    for number in range(25):  # the test server gives ten keys a page
        storage.put(f"s3://{s3_bucket}/k/{number:02}", b"")
    assert keys(f"s3://{s3_bucket}/k") == [f"{number:02}" for number in range(25)]
    listing = storage.list_objects(f"s3://{s3_bucket}/k")
    next(listing)
    storage.delete(f"s3://{s3_bucket}/k/24")  # on a page not yet fetched
    assert sum(1 for _ in listing) == 23


def test_a_listing_is_never_a_stale_one(s3_bucket):
    filesystem, path = storage.arrow_filesystem(f"s3://{s3_bucket}/in")
    for count in (1, 2):
        storage.put(f"s3://{s3_bucket}/in/{count}", b"")
        assert len(keys(f"s3://{s3_bucket}/in")) == count
        assert len(filesystem.get_file_info(pa.fs.FileSelector(path))) == count


PUT_THEN_FORK_AND_PUT = """
import multiprocessing, sys
from segpipe import storage
from segpipe.redaction import redact

storage.put(sys.argv[1] + "/a", b"x")
fork = multiprocessing.get_context("fork")
child = fork.Process(target=storage.put, args=(sys.argv[1] + "/b", b"y"), daemon=True)
child.start()
child.join(60)
sys.exit(f"the forked worker ended with {child.exitcode}" if child.exitcode != 0 else 0)
"""


def test_a_forked_worker_can_use_s3(s3_bucket):
    # In a process of its own: this one has the threads of the tests before, and their locks would be forked.
    command = [sys.executable, "-c", PUT_THEN_FORK_AND_PUT, f"s3://{s3_bucket}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert keys(f"s3://{s3_bucket}") == ["a", "b"]


class _FaultyProxy:
    """Forwards to the real S3 server; the next requests meet the scripted faults, one each."""

    def __init__(self, upstream: str) -> None:
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.upstream = upstream.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.answer(self)

            do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.command)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        fault = self.faults.pop(0) if self.faults else ""
        if fault[:3].isdigit():
            status, code = fault.split(" ", 1)
            text = f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
            self.send(handler, int(status), [("Content-Type", "application/xml")], text, len(text))
            return
        upstream = http.client.HTTPConnection(self.upstream)
        upstream.request(handler.command, handler.path, body, dict(handler.headers))
        reply = upstream.getresponse()
        content = reply.read()
        if fault == "lose the answer":
            handler.close_connection = True
            return
        sent = content[:-3] if fault == "cut" else content
        headers = [h for h in reply.getheaders() if h[0].lower() not in ("content-length", "connection")]
        self.send(handler, reply.status, headers, sent, len(content))
        handler.close_connection = fault == "cut"

    def send(self, handler, status, headers, content, length) -> None:
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)


@pytest.fixture(scope="module")
def proxy(s3_server):
    proxy = _FaultyProxy(s3_server)
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()


@pytest.fixture
def faulty(proxy, s3_bucket, monkeypatch):
    """The S3 server behind a proxy whose `faults` the test scripts; retries wait for next to nothing."""
    proxy.faults, proxy.requests = [], []
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    return proxy


@pytest.mark.parametrize(
    "fault", ["503 SlowDown", "500 InternalError", "429 Throttling", "lose the answer", "cut"]
)
def test_transient_faults_are_retried(faulty, s3_bucket, fault):
    uri = f"s3://{s3_bucket}/a"
    storage.put(uri, b"content")
    faulty.faults = [fault, fault]
    assert storage.read_bytes(uri) == b"content"
    assert faulty.requests == ["PUT", "GET", "GET", "GET"]
    if fault != "cut":
        faulty.faults = [fault]
        storage.put(uri, b"new")
        faulty.faults = [fault]
        assert keys(f"s3://{s3_bucket}") == ["a"]
    assert storage.read_bytes(uri) == b"new" if fault != "cut" else b"content"


def test_retries_end(faulty, s3_bucket, caplog):
    faulty.faults = ["503 SlowDown"] * 50
    caplog.set_level(logging.DEBUG, "segpipe")
    with pytest.raises(StorageError, match="SlowDown"):
        storage.read(f"s3://{s3_bucket}/a")
    assert len(faulty.requests) == 1 + retry.ATTEMPTS  # once by obstore, then by s3fs
    retries = [message for message in caplog.messages if "trying again" in message]
    assert len(retries) == retry.ATTEMPTS - 1
    assert "attempt 1 of 6" in retries[0]


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("403 AccessDenied", DeniedError, "check AWS_ACCESS_KEY_ID .* SEGPIPE_STORAGE_REQUESTER_PAYS=true"),
        ("403 InvalidObjectState", ArchivedError, "cold storage, restore it"),
        ("403 SignatureDoesNotMatch", StorageError, "check AWS_SECRET_ACCESS_KEY"),
        ("403 InvalidAccessKeyId", StorageError, "check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"),
        ("403 RequestTimeTooSkewed", StorageError, "clock"),
        ("400 InvalidToken", StorageError, "check AWS_SESSION_TOKEN"),
        ("401 Unauthorized", StorageError, "check AWS_ACCESS_KEY_ID"),
        ("400 AuthorizationHeaderMalformed", StorageError, "set AWS_REGION"),
        ("400 KMS.DisabledException", DeniedError, "encryption key cannot be used"),
        ("404 NoSuchKey", NotFoundError, "does not exist"),
    ],
)
def test_permanent_faults_are_not_retried(faulty, s3_bucket, fault, kind, text):
    faulty.faults = [fault] * 2
    with pytest.raises(kind, match=text) as caught:
        storage.read(f"s3://{s3_bucket}/a")
    assert type(caught.value) is kind
    assert faulty.requests == ["GET", "GET"]  # s3fs is asked for the reason


def test_a_refused_existence_check_is_an_error_and_not_absence(faulty, s3_bucket):
    faulty.faults = ["403 AccessDenied"]
    with pytest.raises(DeniedError, match="access refused"):
        storage.exists(f"s3://{s3_bucket}/a")


def test_create_whose_answer_was_lost_has_won(faulty, s3_bucket):
    faulty.faults = ["lose the answer", "lose the answer", "503 SlowDown"]
    storage.create(f"s3://{s3_bucket}/a", b"mine")
    assert faulty.requests == ["PUT", "PUT", "PUT", "PUT", "HEAD"]
    assert storage.read_bytes(f"s3://{s3_bucket}/a") == b"mine"


def test_create_that_lost_is_told_so_even_with_equal_bytes_and_lost_answers(faulty, s3_bucket):
    storage.create(f"s3://{s3_bucket}/a", b"same")
    faulty.faults = ["lose the answer", "503 SlowDown"]
    with pytest.raises(AlreadyExistsError):
        storage.create(f"s3://{s3_bucket}/a", b"same")


def test_other_servers_answers_to_a_lost_create(faulty, s3_bucket):
    # Ceph names no condition; a conflict that outlasts every retry means that another writer is at it.
    storage.put(f"s3://{s3_bucket}/a", b"theirs")
    faulty.faults = ["412 PreconditionFailed"]
    with pytest.raises(AlreadyExistsError):
        storage.create(f"s3://{s3_bucket}/a", b"x")
    faulty.faults = ["409 ConditionalRequestConflict"]
    storage.create(f"s3://{s3_bucket}/b", b"x")
    faulty.faults = ["409 ConditionalRequestConflict"] * 50
    with pytest.raises(AlreadyExistsError):
        storage.create(f"s3://{s3_bucket}/c", b"x")


def test_a_closed_port_is_named_after_some_tries(s3_server, monkeypatch, unused_port, caplog):
    caplog.set_level(logging.DEBUG, "segpipe")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    said = rf"nothing listens at 127.0.0.1:{unused_port}, start the storage server or check AWS_ENDPOINT_URL"
    with pytest.raises(StorageError, match=said):
        storage.read("s3://bucket/a")
    assert "attempt 5 of 6" in caplog.text


def test_a_server_that_says_nothing_is_waited_for_as_long_as_the_environment_says(
    s3_server, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG, "segpipe")
    monkeypatch.setenv("SEGPIPE_STORAGE_ANSWER_SECONDS", "0.2")
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"no answer from 127\.0\.0\.1"):
            storage.read("s3://bucket/a")
        monkeypatch.setattr(retry, "GIVE_UP_SECONDS", 0.1)
        caplog.clear()
        with pytest.raises(StorageError, match=r"no answer from 127\.0\.0\.1"):
            storage.read("s3://bucket/a")
    assert caplog.messages == []  # one attempt took longer than all may
    monkeypatch.setenv("SEGPIPE_STORAGE_ANSWER_SECONDS", "soon")
    with pytest.raises(StorageError, match=r"SEGPIPE_STORAGE_ANSWER_SECONDS: .*number"):
        storage.read("s3://bucket/a")


def test_missing_credentials_name_the_variables(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.replace("127.0.0.1", "localhost"))  # a client of its own
    with pytest.raises(StorageError, match="give credentials: AWS_ACCESS_KEY_ID and AWS_SECRET"):
        storage.read("s3://bucket/a")


# --- secrets ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://ada:pass/word+1@bucket/k", "s3://***@bucket/k"),
        ("http://:token@host/x", "http://***@host/x"),
        ("https://u:p@ss@host/x?a=1", "https://***@host/x?a=1"),
        ("http://host:9000/bucket/a@b.jpg", "http://host:9000/bucket/a@b.jpg"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        (
            "GET /k?X-Amz-Credential=AK%2F1&X-Amz-Date=2&X-Amz-Signature=ab12 failed",
            "GET /k?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=*** failed",
        ),
        ("?token=abc&key=a.jpg&sig=x%3D", "?token=***&key=a.jpg&sig=***"),
        ("access_token=abc, api_key=def", "access_token=***, api_key=***"),
        ("s3://bucket/a?b=c#d", "s3://bucket/a?b=c#d"),
    ],
)
def test_redact_urls(text, expected):
    assert redact(text) == expected


def test_redact_hides_values_of_secret_variables(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "LABEL_STUDIO_API_KEY", "DB_PASSWORD", "X_TOKEN", "MY_SECRET"):
        monkeypatch.setenv(name, f"value/of+{name.lower()}")
        assert redact(f"x value/of+{name.lower()} y") == "x *** y"
        assert redact(f"value%2Fof%2B{name.lower()}") == "***"
    monkeypatch.setenv("SORT_KEY", "name")
    monkeypatch.setenv("PLAIN_VALUE", "ordinary text")
    assert redact("name: ordinary text") == "name: ordinary text"


def test_no_error_or_log_shows_a_secret(faulty, monkeypatch, caplog):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/secret+value")
    faulty.faults = ["503 SlowDown"]
    caplog.set_level(logging.DEBUG, "segpipe")
    with pytest.raises(StorageError) as caught:
        storage.read("s3://planted/secret+value/x?X-Amz-Signature=feed\nline two")
    said = f"{caught.value} {caught.value!r} {caplog.text}"
    assert "planted/secret" not in said
    assert "feed" not in said
    assert "***" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "trying again" in caplog.text


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
