"""Read, list and write objects on any fsspec URL; only this package knows fsspec."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import fsspec
from pydantic import ValidationError

from segpipe.addresses import is_local, is_utf8, normalise, split
from segpipe.config import StorageSettings
from segpipe.errors import AddressError, NotFoundError, StorageError
from segpipe.printable import printable
from segpipe.redaction import redact
from segpipe.storage import s3_surroundings
from segpipe.storage.deadline import Deadline
from segpipe.storage.generic import Generic, path_on
from segpipe.storage.local import Local, walk
from segpipe.storage.objects import TEMPORARY_PREFIX, Blob, Bounds, StoredObject
from segpipe.storage.retry import explained, failure, guarded
from segpipe.storage.s3 import S3

if TYPE_CHECKING:
    import pyarrow.fs

logger = logging.getLogger(__name__)
__all__ = ["TEMPORARY_PREFIX", "Blob", "StoredObject", "normalise"]
CONNECT_SECONDS = 10
_NO_PLACES = frozenset(
    (
        *("zip", "tar", "libarchive", "reference", "dir", "blockcache", "filecache", "simplecache", "cached"),
        *("data", "generic", "git", "github", "gist", "jupyter", "jlab", "async_wrapper", "asyncwrapper"),
    )
)
_COPY_IT = "copy what is in it to a folder or a bucket"
_HADOOP_FOLDER = "_$folder$"


def join(root: str, key: str) -> str:
    """`root`/`key`, the key untouched. AddressError for a key that is no path below a local folder."""
    if is_local(root) and {"", ".", ".."} & set(key.split("/")):
        # On disk such a key leaves the folder or meets another key's file; a bucket keeps it as it is.
        raise failure(AddressError, f"key '{key}' is no path below {root}; rename it or write to a bucket")
    return f"{root.rstrip('/')}/{key}"


def list_objects(root: str, not_utf8: Callable[[str], None] = lambda _: None) -> Iterator[StoredObject]:
    """Objects below `root`, sorted by key, a page (S3) or folder (local) at a time, so big buckets stream.

    Directory markers and unfinished files are left out; links are followed, loops cut. So are keys that are
    not UTF-8, which fit no manifest: not_utf8 is told of each, and a warning at the end of all.
    Raises, at the first item, NotFoundError when the folder or bucket is missing, StorageError for a file.
    """
    root = normalise(root)
    return _of_utf8(root, filter(_is_listed, _backend(root).list(root)), not_utf8)


def list_folders(root: str) -> list[str]:
    """Names of the folders directly below `root`, sorted; "s3://" gives the buckets, "/" the disk's folders.

    Raises NotFoundError when the folder or bucket is missing, StorageError.
    """
    with explained(root):
        return sorted(_backend(root).folders(root))


def read(uri: str, max_bytes: int | None = None) -> Blob:
    """An object's bytes with their ETag, as `list_objects` gives it.

    Raises NotFoundError, TooLargeError for one of more than max_bytes, whatever was listed, StorageError.
    """
    store, bounds = _backend(uri), Bounds(max_bytes, Deadline(uri, _settings().object_seconds))
    if isinstance(store, S3) and (found := store.fetch(uri, bounds)):
        return found
    return guarded(uri, partial(store.read, uri, bounds))


def read_bytes(uri: str) -> bytes:
    """An object's bytes. NotFoundError, StorageError."""
    return read(uri).data


def etag(uri: str) -> str:
    """An object's ETag, as `list_objects` gives it. NotFoundError, StorageError."""
    return guarded(uri, partial(_backend(uri).etag, uri))


def put(uri: str, data: bytes) -> None:
    """Write an object, whole or not at all, replacing what is there; folders are made. StorageError."""
    store = _backend(uri)
    if not (isinstance(store, S3) and store.send(uri, data)):
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
    if not is_local(root) or not os.path.isdir(root):
        return []
    unfinished = [
        os.path.join(root, key)
        for key, status in walk(root)
        if os.path.basename(key).startswith(TEMPORARY_PREFIX) and status.st_mtime < written_before.timestamp()
    ]
    for path in unfinished:
        delete(path)
    return unfinished


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem and the path on it, for pyarrow.dataset and pyarrow.parquet. StorageError."""
    from pyarrow import fs

    url = normalise(url)
    scheme, path = split(url)
    store = _backend(url)
    if isinstance(store, Local):
        return fs.LocalFileSystem(), path
    from segpipe.storage.arrow import BoundedHandler

    filesystem = store.filesystem() if isinstance(store, S3) else store.fs
    root = path if scheme == "s3" else path_on(filesystem, url)
    handler = BoundedHandler(filesystem, read, store, lambda below: f"{url}{below.removeprefix(root)}")
    return fs.PyFileSystem(handler), root


def _backend(url: str) -> Local | S3 | Generic:
    scheme, path = split(url)
    seconds = _settings().object_seconds
    if is_local(url):
        if not path.startswith("/"):
            normalise(url)  # a mistyped URL has no such file either, but wants another remedy
        return Local()
    if scheme == "s3":
        return S3(_s3_filesystem, seconds)
    return Generic(_filesystem(url), seconds)


def _settings() -> StorageSettings:
    names = {name: f"SEGPIPE_STORAGE_{name.upper()}" for name in StorageSettings.model_fields}
    try:
        return StorageSettings(
            **{name: os.environ[names[name]] for name in names if names[name] in os.environ}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise failure(StorageError, f"{names[str(first['loc'][0])]}: {first['msg']}") from None


def _s3_filesystem() -> Any:
    # One retry loop, ours: it knows which calls may be repeated.
    configured = {
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": _settings().answer_seconds,
    }
    options: dict[str, Any] = {"requester_pays": True} if _settings().requester_pays else {}
    # The endpoint is passed so that fsspec's instance cache tells two endpoints of one process apart.
    filesystem = _filesystem(
        "s3://",
        endpoint_url=s3_surroundings.endpoint(),
        use_listings_cache=False,
        config_kwargs={**configured, **s3_surroundings.region()},
        **options,
    )
    filesystem.retries = 1
    return filesystem


def _filesystem(url: str, **options: Any) -> Any:
    scheme, path = split(url)
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise failure(AddressError, f"{scheme}:// needs another package: {error}") from None
    except ValueError:
        known = "a local path, s3://, gs://, abfs://, memory:// or another fsspec scheme"
        raise failure(AddressError, f"{url}: unknown scheme '{scheme}'; use {known}") from None
    if scheme in _NO_PLACES:
        raise failure(AddressError, f"{url}: {scheme}:// is no storage of its own; {_COPY_IT}")
    with explained(url), _openable(scheme):
        # Only the host or bucket is parsed: a key may hold '?' and '#'.
        return kind(**kind._get_kwargs_from_urls(f"{scheme}://{path.partition('/')[0]}"), **options)


@contextmanager
def _openable(scheme: str) -> Iterator[None]:
    """What a client says that lacks a library or an option; that a server is away is another matter."""
    try:
        yield
    except (TypeError, ValueError, ImportError, OSError) as error:
        if isinstance(error, OSError) and type(error) is not OSError:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise failure(AddressError, f"{scheme}:// cannot be opened here ({reason}); {_COPY_IT}") from None


def _of_utf8(
    root: str, listed: Iterable[StoredObject], not_utf8: Callable[[str], None]
) -> Iterator[StoredObject]:
    left_out, first = 0, ""
    for item in listed:
        if is_utf8(item.key):
            yield item
        else:
            left_out, first = left_out + 1, first or item.key
            not_utf8(item.key)
    if left_out:
        logger.warning(
            "%d names below %s are not UTF-8, %s for example: they are left out, rename them",
            left_out,
            redact(root),
            printable(first),
        )


def _is_listed(item: StoredObject) -> bool:
    if item.key.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
        return False
    return bool(item.size) or not (item.key.endswith(("/", _HADOOP_FOLDER)) or not item.key)
