"""Every other fsspec filesystem as storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from fsspec.spec import AbstractFileSystem

from segpipe.addresses import split
from segpipe.errors import AddressError, StorageError
from segpipe.storage.deadline import Deadline, Prolong, collected, within
from segpipe.storage.objects import Blob, Bounds, StoredObject, unchanged
from segpipe.storage.retry import failure, guarded, really

_VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "sha",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
    "Last-Modified",
)


@dataclass(frozen=True)
class Generic:
    """Every other fsspec filesystem; a put is as whole as the filesystem's own pipe_file."""

    fs: Any
    seconds: float

    def list(self, root: str) -> Iterator[StoredObject]:
        self._require_listable(root)
        path = path_on(self.fs, root)
        if guarded(root, partial(self.fs.info, path))["type"] == "file":
            raise failure(StorageError, f"{root} is a file, give its folder")
        found = guarded(root, partial(self.fs.find, path, detail=True))
        for name in sorted(found):
            key = name.removeprefix(f"{path}/")
            yield StoredObject(f"{root}/{key}", key, _info_etag(found[name]), found[name]["size"])

    def folders(self, root: str) -> Iterable[str]:
        self._require_listable(root)
        found = guarded(root, partial(self.fs.ls, path_on(self.fs, root.rstrip("/")), detail=True))
        return [item["name"].rstrip("/").rpartition("/")[2] for item in found if item["type"] == "directory"]

    def _require_listable(self, root: str) -> None:
        if self._is_http():
            raise failure(
                AddressError, f"{root}: a web server has no listing; copy it to a folder or a bucket"
            )

    def _is_http(self) -> bool:
        return "http" in self.fs.protocol

    def read(self, uri: str, bounds: Bounds) -> Blob:
        path = path_on(self.fs, uri)
        before = self._info(path, bounds.deadline)
        bounds.require_size(uri, before["size"] or 0)
        data = self._bytes(path, before["size"], bounds)
        bounds.require_size(uri, len(data))
        after = self._info(path, bounds.deadline)
        return unchanged(data, _info_etag(before), _info_etag(after), before["size"])

    def _info(self, path: str, deadline: Deadline) -> dict[str, Any]:
        if not self.fs.async_impl:
            return dict(self.fs.info(path))
        return dict(within(deadline, self.fs.loop, lambda _: self.fs._info(path)))

    def _bytes(self, path: str, size: int | None, bounds: Bounds) -> bytes:
        if self._is_http():
            get = partial(_http_bytes, self.fs, path, bounds.max_bytes)
            return within(bounds.deadline, self.fs.loop, get)
        if not self.fs.async_impl:
            return bytes(self.fs.cat_file(path))
        return bytes(within(bounds.deadline, self.fs.loop, lambda _: self.fs._cat_file(path), size or 0))

    def length(self, uri: str) -> int:
        return int(self._info(path_on(self.fs, uri), Deadline(uri, self.seconds))["size"])

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        path = path_on(self.fs, uri)
        if not self.fs.async_impl:
            return bytes(self.fs.cat_file(path, start=start, end=end))
        part = partial(self.fs._cat_file, path, start=start, end=end)
        return bytes(within(Deadline(uri, self.seconds), self.fs.loop, lambda _: part(), end - start))

    def etag(self, uri: str) -> str:
        return _info_etag(self._info(path_on(self.fs, uri), Deadline(uri, self.seconds)))

    def put(self, uri: str, data: bytes) -> None:
        self._require_writable(uri)
        path = path_on(self.fs, uri)
        try:
            self.fs.pipe_file(path, data)
        except FileNotFoundError:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(path, data)

    def _require_writable(self, uri: str) -> None:
        if self._is_http():
            raise failure(AddressError, f"{uri}: a web server takes no files; write to a folder or a bucket")

    def create(self, uri: str, data: bytes, _writer: str) -> None:
        from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

        self._require_writable(uri)
        path = path_on(self.fs, uri)
        if isinstance(self.fs, MemoryFileSystem):
            file = MemoryFile(self.fs, path, data)  # its own "x" mode lets two threads win
            if self.fs.store.setdefault(path, file) is not file:
                raise FileExistsError(path)
        elif type(self.fs).pipe_file is AbstractFileSystem.pipe_file:  # looks first, then overwrites
            raise failure(StorageError, f"{uri}: no exclusive create on this storage; use a bucket or disk")
        else:
            self.fs.pipe_file(path, data, mode="create")

    def exists(self, uri: str) -> bool:
        try:  # fsspec's own exists and isfile take every error, a refusal too, for absence
            return bool(self._info(path_on(self.fs, uri), Deadline(uri, self.seconds))["type"] == "file")
        except FileNotFoundError as error:
            if really(error) is not error:
                raise
            return False

    def delete(self, uri: str) -> None:
        self.fs.rm_file(path_on(self.fs, uri))


async def _http_bytes(filesystem: Any, url: str, max_bytes: int | None, prolong: Prolong) -> bytes:
    session = await filesystem.set_session()
    plain = {"Accept-Encoding": "identity"}  # the length told is then that of what is read
    async with session.get(filesystem.encode_url(url), headers=plain) as answer:
        filesystem._raise_not_found_for_status(answer, url)
        return await collected(answer.content.read, max_bytes, prolong)


def path_on(filesystem: Any, uri: str) -> str:
    """What a filesystem calls the URI; only the host or bucket is parsed, a key may hold '?' and '#'."""
    scheme, rest = split(uri)
    host, slash, key = rest.partition("/")
    return f"{filesystem._strip_protocol(f'{scheme}://{host}')}{slash}{key}"


def _info_etag(info: dict[str, Any]) -> str:
    """ETag or checksum, else a time, of an fsspec info; StorageError when changes could not be seen."""
    for name in _VERSION_FIELDS:
        if value := info.get(name):
            text = repr(value.timestamp()) if isinstance(value, datetime) else str(value).strip('"')
            return f"{text}-{info['size']}"
    raise failure(StorageError, f"{info['name']}: no ETag or time to see changes by; use a bucket or disk")
