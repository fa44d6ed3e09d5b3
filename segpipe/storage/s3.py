"""S3 as storage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from segpipe.addresses import bucket_and_key, split
from segpipe.errors import StorageError
from segpipe.storage.deadline import Deadline, Prolong, collected, within
from segpipe.storage.objects import Blob, Bounds, StoredObject
from segpipe.storage.remedies import is_expired
from segpipe.storage.retry import failure, guarded, is_conflict

T = TypeVar("T")
Work = Callable[[Any, Prolong], Awaitable[T]]  # on an s3fs.S3FileSystem


@dataclass(frozen=True)
class S3:
    """Plain S3 calls: s3fs' path functions cut a key at '?versionId=' and give no ETag with the bytes.

    filesystem gives an s3fs.S3FileSystem, the same one as long as fsspec keeps it; seconds is what a call may
    take, beyond what its bytes need.
    """

    filesystem: Callable[[], Any]
    seconds: float

    def list(self, root: str) -> Iterator[StoredObject]:
        bucket, key = bucket_and_key(root)
        prefix = f"{key}/" if key else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        call = partial(self._call, "list_objects_v2", root)
        page = guarded(root, partial(call, **request))
        if key and not page.get("Contents") and guarded(root, partial(self.exists, root)):
            raise failure(StorageError, f"{root} is a file, give its folder")
        while True:
            for item in page.get("Contents", []):
                name = item["Key"]
                etag = item["ETag"].strip('"')
                kept_as = item.get("StorageClass", "STANDARD")
                yield StoredObject(
                    f"s3://{bucket}/{name}",
                    name.removeprefix(prefix),
                    etag,
                    item["Size"],
                    "" if kept_as == "STANDARD" else kept_as,
                )
            if not page.get("IsTruncated"):
                return
            page = guarded(root, partial(call, **request, ContinuationToken=page["NextContinuationToken"]))

    def folders(self, root: str) -> Iterable[str]:
        if not split(root)[1]:
            answer = guarded("s3://", partial(self._call, "list_buckets", root))
            return [bucket["Name"] for bucket in answer["Buckets"]]
        return self._common_prefixes(root)

    def _common_prefixes(self, root: str) -> Iterator[str]:
        bucket, key = bucket_and_key(root.rstrip("/"))
        prefix = f"{key}/" if key else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        while True:
            page = guarded(root, partial(self._call, "list_objects_v2", root, **request))
            for found in page.get("CommonPrefixes", []):
                yield found["Prefix"].removeprefix(prefix).rstrip("/")
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, uri: str, bounds: Bounds) -> Blob:
        bucket, key = bucket_and_key(uri)

        async def get(fs: Any, prolong: Prolong) -> Blob:
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                bounds.require_size(uri, answer.get("ContentLength") or 0)
                data = await collected(body.read, bounds.max_bytes, prolong)
                bounds.require_size(uri, len(data))
                return Blob(data, answer["ETag"].strip('"'))

        return self._within(bounds.deadline, get)

    def length(self, uri: str) -> int:
        bucket, key = bucket_and_key(uri)
        return int(self._call("head_object", uri, Bucket=bucket, Key=key)["ContentLength"])

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        bucket, key = bucket_and_key(uri)

        async def get(fs: Any, prolong: Prolong) -> bytes:
            part = f"bytes={start}-{end - 1}"
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=part)
            async with answer["Body"] as body:
                return await collected(body.read, None, prolong)

        return self._within(Deadline(uri, self.seconds), get)

    def _call(self, method: str, uri: str, n_bytes: int = 0, **request: Any) -> Any:
        """What the server answers; n_bytes is what is sent."""

        async def call(fs: Any, _: Prolong) -> Any:
            return await fs._call_s3(method, **request)

        return self._within(Deadline(uri, self.seconds), call, n_bytes)

    def _within(self, deadline: Deadline, work: Work[T], n_bytes: int = 0) -> T:
        """Work on the filesystem; once more on a new one where the credentials of the first have expired."""
        filesystem = self.filesystem()
        try:
            return within(deadline, filesystem.loop, partial(work, filesystem), n_bytes)
        except Exception as error:
            if not is_expired(error):
                raise
        self._forget(filesystem)
        filesystem = self.filesystem()
        return within(deadline, filesystem.loop, partial(work, filesystem), n_bytes)

    def _forget(self, filesystem: Any) -> None:
        """Let credentials be read anew: whoever renews them writes them where they were found before."""
        from segpipe.storage import s3_transfer

        if self.filesystem() is filesystem:  # else another thread has done so
            filesystem.clear_instance_cache()
            s3_transfer.forget()

    def fetch(self, uri: str, bounds: Bounds) -> Blob | None:
        """What read gives, for less CPU time; None when it did not work."""
        from segpipe.storage import s3_transfer

        found = s3_transfer.fetch(self.filesystem(), *bucket_and_key(uri), self.seconds, bounds.max_bytes)
        return Blob(*found) if found else None

    def send(self, uri: str, data: bytes) -> bool:
        """What put does, for less CPU time; False when it did not work."""
        from segpipe.storage import s3_transfer

        return s3_transfer.send(self.filesystem(), *bucket_and_key(uri), data, self.seconds)

    def etag(self, uri: str) -> str:
        bucket, key = bucket_and_key(uri)
        return self._call("head_object", uri, Bucket=bucket, Key=key)["ETag"].strip('"')

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = bucket_and_key(uri)
        self._call("put_object", uri, len(data), Bucket=bucket, Key=key, Body=data)

    def create(self, uri: str, data: bytes, writer: str) -> None:
        bucket, key = bucket_and_key(uri)
        only_once = {"IfNoneMatch": "*", "Metadata": {"segpipe-writer": writer}}
        try:
            self._call("put_object", uri, len(data), Bucket=bucket, Key=key, Body=data, **only_once)
        except OSError as error:
            # The HTTP client repeats a PUT whose answer was lost, and then meets its own object.
            if not (is_conflict(error) and self._writer(uri) == writer):
                raise

    def _writer(self, uri: str) -> str | None:
        bucket, key = bucket_and_key(uri)
        try:
            return self._call("head_object", uri, Bucket=bucket, Key=key)["Metadata"].get("segpipe-writer")
        except FileNotFoundError:
            return None

    def exists(self, uri: str) -> bool:
        bucket, key = bucket_and_key(uri)
        try:
            self._call("head_object", uri, Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, uri: str) -> None:
        bucket, key = bucket_and_key(uri)
        self._call("delete_object", uri, Bucket=bucket, Key=key)
