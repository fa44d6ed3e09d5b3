"""Read, list and write objects on any fsspec URL; the only module that knows fsspec."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import fsspec
from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem
from pydantic import ValidationError

from segpipe.config import StorageSettings
from segpipe.errors import AddressError, NotFoundError, StorageError
from segpipe.storage_retry import ChangedError, explained, failure, guarded, is_conflict

if TYPE_CHECKING:
    import pyarrow.fs

CONNECT_SECONDS = 10
TEMPORARY_PREFIX = ".segpipe-tmp-"
_URL = re.compile(r"([A-Za-z][\w+.:-]*)://(.*)", re.DOTALL)
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "sha", "mtime", "LastModified", "last_modified", "created")
_LOCAL_SCHEMES = ("", "file", "local")


@dataclass(frozen=True)
class StoredObject:
    """One listed object; `key` is relative to the listed root, `size` in bytes."""

    uri: str
    key: str
    etag: str
    size: int


@dataclass(frozen=True)
class Blob:
    """An object's bytes and the ETag of exactly these bytes."""

    data: bytes
    etag: str


def normalise(url: str | os.PathLike[str]) -> str:
    """Absolute plain path, or scheme://bucket/key; no trailing '/'. AddressError on a URL we cannot keep."""
    text = os.fspath(url)
    scheme, path = _split(text)
    if not path:
        raise failure(AddressError, f"'{text}' names no folder; give a path or scheme://bucket/folder")
    if scheme in _LOCAL_SCHEMES:
        return os.path.abspath(os.path.expanduser(path))
    if re.match(r"[^/@]*:[^/]*@", path):
        # URIs end up in manifests, so a password in one would be published there.
        raise failure(AddressError, f"{text} carries a password; give credentials in the environment instead")
    return f"{'s3' if scheme == 's3a' else scheme}://{path}".rstrip("/")


def join(root: str, key: str) -> str:
    """`root`/`key`, the key untouched. AddressError for a key that is no path below a local folder."""
    if _split(root)[0] in _LOCAL_SCHEMES and {"", ".", ".."} & set(key.split("/")):
        # On disk such a key leaves the folder or meets another key's file; a bucket keeps it as it is.
        raise failure(AddressError, f"key '{key}' is no path below {root}; rename it or write to a bucket")
    return f"{root.rstrip('/')}/{key}"


def list_objects(root: str) -> Iterator[StoredObject]:
    """Objects below `root`, sorted by key, a page (S3) or folder (local) at a time, so big buckets stream.

    Directory markers and unfinished files are left out; links are followed, loops cut.
    Raises, at the first item, NotFoundError when the folder or bucket is missing, StorageError for a file.
    """
    root = normalise(root)
    return (item for item in _backend(root).list(root) if _is_listed(item))


def list_folders(root: str) -> list[str]:
    """Names of the folders directly below `root`, sorted; "s3://" gives the buckets, "/" the disk's folders.

    Raises NotFoundError when the folder or bucket is missing, StorageError.
    """
    with explained(root):
        return sorted(_backend(root).folders(root))


def read(uri: str) -> Blob:
    """An object's bytes with their ETag, as `list_objects` gives it. NotFoundError, StorageError."""
    store = _backend(uri)
    if isinstance(store, _S3) and (found := store.fetch(uri)):
        return found
    return guarded(uri, partial(store.read, uri))


def read_bytes(uri: str) -> bytes:
    """An object's bytes. NotFoundError, StorageError."""
    return read(uri).data


def etag(uri: str) -> str:
    """An object's ETag, as `list_objects` gives it. NotFoundError, StorageError."""
    return guarded(uri, partial(_backend(uri).etag, uri))


def put(uri: str, data: bytes) -> None:
    """Write an object, whole or not at all, replacing what is there; folders are made. StorageError."""
    store = _backend(uri)
    if not (isinstance(store, _S3) and store.send(uri, data)):
        guarded(uri, partial(store.put, uri, data))


def create(uri: str, data: bytes) -> None:
    """Write an object only if there is none: of many writers one wins. AlreadyExistsError, StorageError."""
    guarded(uri, partial(_backend(uri).create, uri, data, uuid4().hex))


def exists(uri: str) -> bool:
    """Whether an object is there; a folder is not an object. StorageError."""
    return guarded(uri, partial(_backend(uri).exists, uri))


def delete(uri: str) -> None:
    """Remove an object; no error when it is absent. StorageError."""
    with suppress(NotFoundError):
        guarded(uri, partial(_backend(uri).delete, uri))


def delete_unfinished(root: str, written_before: datetime) -> list[str]:
    """Remove, below a local folder, the temporary files of writers that were killed; their paths.

    written_before spares the files that a writer may still be at. Other storage has none. StorageError.
    """
    root = normalise(root)
    if _split(root)[0] not in _LOCAL_SCHEMES or not os.path.isdir(root):
        return []
    unfinished = [
        os.path.join(root, key)
        for key, status in _walk(root)
        if os.path.basename(key).startswith(TEMPORARY_PREFIX) and status.st_mtime < written_before.timestamp()
    ]
    for path in unfinished:
        delete(path)
    return unfinished


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem and the path on it, for pyarrow.dataset and pyarrow.parquet. StorageError."""
    from pyarrow import fs

    url = normalise(url)
    scheme, path = _split(url)
    if scheme in _LOCAL_SCHEMES:
        return fs.LocalFileSystem(), path
    # pyarrow's calls do not pass through our retries, so S3 keeps those of s3fs here.
    filesystem = _s3_filesystem() if scheme == "s3" else _filesystem(url)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path if scheme == "s3" else _path(filesystem, url)


class _Store(Protocol):
    def list(self, root: str) -> Iterator[StoredObject]: ...
    def folders(self, root: str) -> Iterable[str]: ...
    def read(self, uri: str) -> Blob: ...
    def etag(self, uri: str) -> str: ...
    def put(self, uri: str, data: bytes) -> None: ...
    def create(self, uri: str, data: bytes, writer: str) -> None: ...
    def exists(self, uri: str) -> bool: ...
    def delete(self, uri: str) -> None: ...


class _Local:
    """Plain files; the ETag is made of modification time (ns) and size."""

    def list(self, root: str) -> Iterator[StoredObject]:
        for key, status in _walk(root):
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield StoredObject(f"{root.rstrip('/')}/{key}", key, _file_etag(status), status.st_size)

    def folders(self, root: str) -> Iterable[str]:
        with os.scandir(_split(root)[1] or "/") as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def read(self, uri: str) -> Blob:
        with open(_split(uri)[1], "rb") as file:
            before = os.fstat(file.fileno())
            data = file.read()
            return _unchanged(data, _file_etag(before), _file_etag(os.fstat(file.fileno())), before.st_size)

    def etag(self, uri: str) -> str:
        return _file_etag(os.stat(_split(uri)[1]))

    def put(self, uri: str, data: bytes) -> None:
        with _written_beside(_split(uri)[1], data) as temporary:
            os.replace(temporary, _split(uri)[1])

    def create(self, uri: str, data: bytes, _writer: str) -> None:
        path = _split(uri)[1]
        with _written_beside(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:  # no hard links here: claim the name, then fill it in one step
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.replace(temporary, path)

    def exists(self, uri: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(_split(uri)[1]).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, uri: str) -> None:
        os.unlink(_split(uri)[1])


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Keys below a folder in key order; a stack, because folders can nest deeper than Python recurses."""
    with explained(root):
        if not stat.S_ISDIR((status := os.stat(root)).st_mode):
            raise failure(StorageError, f"{root} is a file, give its folder")
        stack: list[tuple[str, os.stat_result, frozenset[tuple[int, int]]]] = [("", status, frozenset())]
        while stack:
            key, status, above = stack.pop()
            folder = (status.st_dev, status.st_ino)
            if not stat.S_ISDIR(status.st_mode):
                yield key, status
            elif folder not in above:  # a link back to a folder above would never end
                stack.extend((*child, above | {folder}) for child in _children(root, key))


def _children(root: str, folder: str) -> list[tuple[str, os.stat_result]]:
    prefix = f"{folder}/" if folder else ""
    with suppress(FileNotFoundError), os.scandir(os.path.join(root, folder)) as entries:
        found = [(prefix + entry.name, status) for entry in entries if (status := _status(entry))]
        for key, _ in found:
            key.encode()  # a name that is not UTF-8 fits no manifest
        return sorted(found, key=lambda child: child[0] + "/" * stat.S_ISDIR(child[1].st_mode), reverse=True)
    return []


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    with suppress(OSError):
        return entry.stat()
    with suppress(FileNotFoundError):  # deleted since; a dangling link stays: reading it gives its reason
        return entry.stat(follow_symlinks=False)
    return None


def _file_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


@contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:  # must not look like a lost exclusive create
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is needed", folder) from error
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@dataclass(frozen=True)
class _S3:
    """Plain S3 calls: s3fs' path functions cut a key at '?versionId=' and give no ETag with the bytes."""

    fs: Any

    def list(self, root: str) -> Iterator[StoredObject]:
        bucket, key = _bucket_and_key(root)
        prefix = f"{key}/" if key else ""
        request = {"Bucket": bucket, "Prefix": prefix}
        call = partial(self.fs.call_s3, "list_objects_v2")
        page = guarded(root, partial(call, **request))
        if key and not page.get("Contents") and exists(root):
            raise failure(StorageError, f"{root} is a file, give its folder")
        while True:
            for item in page.get("Contents", []):
                name = item["Key"]
                etag = item["ETag"].strip('"')
                yield StoredObject(f"s3://{bucket}/{name}", name.removeprefix(prefix), etag, item["Size"])
            if not page.get("IsTruncated"):
                return
            page = guarded(root, partial(call, **request, ContinuationToken=page["NextContinuationToken"]))

    def folders(self, root: str) -> Iterable[str]:
        if not _split(root)[1]:
            answer = guarded("s3://", partial(self.fs.call_s3, "list_buckets"))
            return [bucket["Name"] for bucket in answer["Buckets"]]
        return self._common_prefixes(root)

    def _common_prefixes(self, root: str) -> Iterator[str]:
        bucket, key = _bucket_and_key(root.rstrip("/"))
        prefix = f"{key}/" if key else ""
        request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        while True:
            page = guarded(root, partial(self.fs.call_s3, "list_objects_v2", **request))
            for found in page.get("CommonPrefixes", []):
                yield found["Prefix"].removeprefix(prefix).rstrip("/")
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, uri: str) -> Blob:
        bucket, key = _bucket_and_key(uri)

        async def get() -> Blob:
            answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return Blob(await body.read(), answer["ETag"].strip('"'))

        return sync(self.fs.loop, get)

    def fetch(self, uri: str) -> Blob | None:
        """What read gives, for less CPU time; None when it did not work."""
        from segpipe import s3_transfer  # obstore takes a while to load

        found = s3_transfer.fetch(self.fs, *_bucket_and_key(uri))
        return Blob(*found) if found else None

    def send(self, uri: str, data: bytes) -> bool:
        """What put does, for less CPU time; False when it did not work."""
        from segpipe import s3_transfer

        return s3_transfer.send(self.fs, *_bucket_and_key(uri), data)

    def etag(self, uri: str) -> str:
        bucket, key = _bucket_and_key(uri)
        return self.fs.call_s3("head_object", Bucket=bucket, Key=key)["ETag"].strip('"')

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = _bucket_and_key(uri)
        self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data)

    def create(self, uri: str, data: bytes, writer: str) -> None:
        bucket, key = _bucket_and_key(uri)
        only_once = {"IfNoneMatch": "*", "Metadata": {"segpipe-writer": writer}}
        try:
            self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **only_once)
        except OSError as error:
            # The HTTP client repeats a PUT whose answer was lost, and then meets its own object.
            if not (is_conflict(error) and self._writer(uri) == writer):
                raise

    def _writer(self, uri: str) -> str | None:
        bucket, key = _bucket_and_key(uri)
        try:
            return self.fs.call_s3("head_object", Bucket=bucket, Key=key)["Metadata"].get("segpipe-writer")
        except FileNotFoundError:
            return None

    def exists(self, uri: str) -> bool:
        bucket, key = _bucket_and_key(uri)
        try:
            self.fs.call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, uri: str) -> None:
        bucket, key = _bucket_and_key(uri)
        self.fs.call_s3("delete_object", Bucket=bucket, Key=key)


@dataclass(frozen=True)
class _Generic:
    """Every other fsspec filesystem; a put is as whole as the filesystem's own pipe_file."""

    fs: Any

    def list(self, root: str) -> Iterator[StoredObject]:
        path = _path(self.fs, root)
        if guarded(root, partial(self.fs.info, path))["type"] == "file":
            raise failure(StorageError, f"{root} is a file, give its folder")
        found = guarded(root, partial(self.fs.find, path, detail=True))
        for name in sorted(found):
            key = name.removeprefix(f"{path}/")
            yield StoredObject(f"{root}/{key}", key, _info_etag(found[name]), found[name]["size"])

    def folders(self, root: str) -> Iterable[str]:
        found = guarded(root, partial(self.fs.ls, _path(self.fs, root.rstrip("/")), detail=True))
        return [item["name"].rstrip("/").rpartition("/")[2] for item in found if item["type"] == "directory"]

    def read(self, uri: str) -> Blob:
        path = _path(self.fs, uri)
        before = self.fs.info(path)
        data = self.fs.cat_file(path)
        return _unchanged(data, _info_etag(before), _info_etag(self.fs.info(path)), before["size"])

    def etag(self, uri: str) -> str:
        return _info_etag(self.fs.info(_path(self.fs, uri)))

    def put(self, uri: str, data: bytes) -> None:
        path = _path(self.fs, uri)
        try:
            self.fs.pipe_file(path, data)
        except FileNotFoundError:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(path, data)

    def create(self, uri: str, data: bytes, _writer: str) -> None:
        from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

        path = _path(self.fs, uri)
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
            return bool(self.fs.info(_path(self.fs, uri))["type"] == "file")
        except FileNotFoundError:
            return False

    def delete(self, uri: str) -> None:
        self.fs.rm_file(_path(self.fs, uri))


def _info_etag(info: dict[str, Any]) -> str:
    """ETag or checksum, else a time, of an fsspec info; StorageError when changes could not be seen."""
    for name in _VERSION_FIELDS:
        if value := info.get(name):
            text = repr(value.timestamp()) if isinstance(value, datetime) else str(value).strip('"')
            return f"{text}-{info['size']}"
    raise failure(StorageError, f"{info['name']}: no ETag or time to see changes by; use a bucket or disk")


def _backend(url: str) -> _Store:
    scheme = _split(url)[0]
    if scheme in _LOCAL_SCHEMES:
        return _Local()
    if scheme in ("s3", "s3a"):
        once = {
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 64,
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": _settings().answer_seconds,
        }
        filesystem = _s3_filesystem(config_kwargs=once)
        filesystem.retries = 1  # one retry loop, ours: it knows which calls may be repeated
        return _S3(filesystem)
    return _Generic(_filesystem(url))


def _settings() -> StorageSettings:
    names = {name: f"SEGPIPE_STORAGE_{name.upper()}" for name in StorageSettings.model_fields}
    try:
        return StorageSettings(
            **{name: os.environ[names[name]] for name in names if names[name] in os.environ}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise failure(StorageError, f"{names[str(first['loc'][0])]}: {first['msg']}") from None


def _s3_filesystem(**options: Any) -> Any:
    # The endpoint is passed so that fsspec's instance cache tells two endpoints of one process apart.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _filesystem("s3://", endpoint_url=endpoint, use_listings_cache=False, **options)


def _filesystem(url: str, **options: Any) -> Any:
    scheme, path = _split(url)
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise failure(AddressError, f"{scheme}:// needs another package: {error}") from None
    except ValueError:
        known = "a local path, s3://, gs://, abfs://, memory:// or another fsspec scheme"
        raise failure(AddressError, f"{url}: unknown scheme '{scheme}'; use {known}") from None
    with explained(url):
        # Only the host or bucket is parsed: a key may hold '?' and '#'.
        return kind(**kind._get_kwargs_from_urls(f"{scheme}://{path.partition('/')[0]}"), **options)


def _split(url: str) -> tuple[str, str]:
    """Scheme ('' for a plain path) and what follows '://'."""
    match = _URL.fullmatch(url)
    return (match[1].lower(), match[2]) if match else ("", url)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = _split(uri)[1].partition("/")
    return bucket, key


def _path(filesystem: Any, uri: str) -> str:
    scheme, rest = _split(uri)
    host, slash, key = rest.partition("/")
    return f"{filesystem._strip_protocol(f'{scheme}://{host}')}{slash}{key}"


def _is_listed(item: StoredObject) -> bool:
    marker = item.key.endswith("/") or not item.key
    return not (marker and item.size == 0) and not item.key.rpartition("/")[2].startswith(TEMPORARY_PREFIX)


def _unchanged(data: bytes, before: str, after: str, size: int) -> Blob:
    if before != after or len(data) != size:
        raise ChangedError("it was written while it was read")
    return Blob(data, before)
