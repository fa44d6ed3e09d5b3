"""Plain files as storage."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from uuid import uuid4

from segpipe.addresses import split
from segpipe.errors import StorageError
from segpipe.storage.objects import TEMPORARY_PREFIX, Blob, Bounds, StoredObject, unchanged
from segpipe.storage.retry import explained, failure

_CHUNK = 16 * 2**20


class Local:
    """Plain files; the ETag is made of modification time (ns) and size."""

    def list(self, root: str) -> Iterator[StoredObject]:
        for key, status in walk(root):
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield StoredObject(f"{root.rstrip('/')}/{key}", key, _file_etag(status), status.st_size)

    def folders(self, root: str) -> Iterable[str]:
        with os.scandir(split(root)[1] or "/") as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def read(self, uri: str, bounds: Bounds) -> Blob:
        path = split(uri)[1]
        _require_file(uri, os.stat(path))  # to open a device can have effects
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            _require_file(uri, before)  # it may have been put there since
            bounds.require_size(uri, before.st_size)
            data = _read(file, before.st_size, bounds)
            return unchanged(data, _file_etag(before), _file_etag(os.fstat(file.fileno())), before.st_size)

    def etag(self, uri: str) -> str:
        return _file_etag(os.stat(split(uri)[1]))

    def put(self, uri: str, data: bytes) -> None:
        with _written_beside(split(uri)[1], data) as temporary:
            os.replace(temporary, split(uri)[1])

    def create(self, uri: str, data: bytes, _writer: str) -> None:
        path = split(uri)[1]
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
            return stat.S_ISREG(os.stat(split(uri)[1]).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, uri: str) -> None:
        os.unlink(split(uri)[1])


def _require_file(uri: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise failure(StorageError, f"{uri} is {kind} and no file; remove it or name a file")


def _read(file: RawIOBase, size: int, bounds: Bounds) -> bytes:
    """All its bytes, one more than size at the most: a file that grows meanwhile has changed."""
    chunks: list[bytes] = []
    received = 0
    while received <= size and (chunk := file.read(min(_CHUNK, size + 1 - received))):
        chunks.append(chunk)
        received += len(chunk)
        bounds.deadline.require_left(received)
    return b"".join(chunks)


def walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
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
    except OSError as error:
        if error.filename == temporary and error.errno is not None:  # its name tells nobody anything
            raise OSError(error.errno, error.strerror) from None
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
