"""Whole objects to and from S3 at a fifth of the client's usual CPU time, as long as nothing is odd.

s3fs spends some 4 ms of CPU on a request, which a machine busy with networks does not have; obstore spends
one (benchmarks/throughput.py). It knows fewer ways to be configured, spells some keys otherwise and has one
error for many. So whatever it cannot do is None or False here, and s3fs does it or says why (s3.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import obstore
from fsspec.asyn import sync
from obstore.exceptions import NotFoundError, PermissionDeniedError
from obstore.store import S3Store

# Other keys are encoded or cleaned up on the way, and would name another object.
_PLAIN_KEY = re.compile(r"(?!\.{1,2}(/|$))[\w.=~-]+(/(?!\.{1,2}(/|$))[\w.=~-]+)*", re.ASCII)
SECONDS = 120.0
_FAILURES_UNTIL_UNFIT = 8
_LOADED_IN = os.getpid()  # a forked process has obstore's state, and none of its threads
_LARGEST_BYTES = 16_000_000  # a request has one time limit here, whatever its size
_CREDENTIALS_MINUTES = 5  # botocore renews its own at least ten minutes before they expire


@dataclass
class _Bucket:
    """A bucket as obstore sees it; given up for the process when request after request fails."""

    filesystem: Any
    name: str
    seconds: float
    failures: int = 0

    def attempt(self, request: Callable[[S3Store], Any]) -> Any:
        """What the request answers, None when it failed."""
        if self.failures >= _FAILURES_UNTIL_UNFIT:
            return None
        try:
            answer = request(_store(self.filesystem, self.name, self.seconds))
        except (NotFoundError, FileNotFoundError, PermissionDeniedError):  # the object's fault, not obstore's
            return None
        except Exception:  # of any kind: s3fs is asked next, and says what is wrong
            self.failures += 1
            return None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # obstore's own, which is none of Python's errors
                raise
            self.failures += 1
            return None
        self.failures = 0
        return answer


def fetch(
    filesystem: Any, bucket: str, key: str, seconds: float = SECONDS, max_bytes: int | None = None
) -> tuple[bytes, str] | None:
    """An object's bytes and their ETag; None when s3fs is to be asked, as for one over max_bytes.

    filesystem is an s3fs.S3FileSystem, whose endpoint, timeouts and credentials are used; seconds are
    those that the request may take.
    """
    if not _is_usable(filesystem, key):
        return None

    largest = _LARGEST_BYTES if max_bytes is None else min(max_bytes, _LARGEST_BYTES)

    def get(store: S3Store) -> tuple[bytes, str] | None:
        answer = obstore.get(store, key)
        if answer.meta["size"] > largest:
            return None
        return bytes(answer.bytes()), (answer.meta["e_tag"] or "").strip('"')

    found = _bucket(filesystem, bucket, seconds).attempt(get)
    return found if found and found[1] else None


def send(filesystem: Any, bucket: str, key: str, data: bytes, seconds: float = SECONDS) -> bool:
    """Write a whole object, replacing what is there; False when s3fs is to do it."""
    if not _is_usable(filesystem, key) or len(data) > _LARGEST_BYTES:
        return False

    def put(store: S3Store) -> bool:
        obstore.put(store, key, data, use_multipart=False)
        return True

    return bool(_bucket(filesystem, bucket, seconds).attempt(put))


def forget() -> None:
    """Start anew, with credentials that may have changed."""
    _bucket.cache_clear()
    _store.cache_clear()


def _is_usable(filesystem: Any, key: str) -> bool:
    """Whether obstore works here, and key and configuration mean to it what they mean to s3fs."""
    if os.getpid() != _LOADED_IN:
        return False
    options = (filesystem.anon, filesystem.key, filesystem.token, filesystem.client_kwargs)
    return bool(_PLAIN_KEY.fullmatch(key)) and not any((*options, filesystem.s3_additional_kwargs))


@lru_cache(maxsize=64)
def _bucket(filesystem: Any, name: str, seconds: float) -> _Bucket:
    return _Bucket(filesystem, name, seconds)


@lru_cache(maxsize=64)
def _store(filesystem: Any, bucket: str, seconds: float) -> S3Store:
    filesystem.connect()
    meta, configured = filesystem.s3.meta, filesystem.config_kwargs
    timeouts = {name: timedelta(seconds=configured[name]) for name in ("connect_timeout", "read_timeout")}
    options: Any = timeouts | {"timeout": timedelta(seconds=seconds)} | _encryption(meta.endpoint_url)
    return S3Store(
        bucket,
        endpoint=meta.endpoint_url,
        region=meta.region_name if meta.region_name not in (None, "aws-global") else "us-east-1",
        client_options=options,
        request_payer=bool(filesystem.requester_pays),
        retry_config={"max_retries": 0},  # one retry loop, that of storage/retry.py
        credential_provider=lambda: _credentials(filesystem),
    )


def _encryption(endpoint: str) -> dict[str, Any]:
    if endpoint.startswith("http://"):
        return {"allow_http": True}
    bundle = os.environ.get("AWS_CA_BUNDLE")
    return {"root_certificate": Path(bundle).read_bytes()} if bundle else {}


def _credentials(filesystem: Any) -> Any:
    async def current() -> Any:
        credentials = await filesystem.session.get_credentials()
        return await credentials.get_frozen_credentials()

    frozen = sync(filesystem.loop, current)
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + timedelta(minutes=_CREDENTIALS_MINUTES),
    }
