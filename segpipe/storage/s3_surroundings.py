"""What the environment says of S3, held against what it can be: clients speak of a mistake in riddles."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from urllib.parse import urlsplit

from segpipe.errors import StorageError
from segpipe.storage.retry import failure

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_BUNDLE = "AWS_CA_BUNDLE"


def endpoint() -> str | None:
    """The server to be asked, None for Amazon's own. StorageError for what is no URL, or no certificates."""
    name = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    url = os.environ[name] if name else None
    if name and url:
        _require_url(name, url)
    if bundle := os.environ.get(_BUNDLE):  # clients load it for http:// as well
        _require_certificates(bundle)
    return url


def region() -> dict[str, str]:
    """AWS_REGION, which botocore alone of all of Amazon's clients does not know."""
    name = os.environ.get("AWS_REGION")
    return {"region_name": name} if name and not os.environ.get("AWS_DEFAULT_REGION") else {}


@lru_cache(maxsize=16)
def _require_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url or url != "".join(url.split()):
        raise failure(StorageError, f"{name} is {url!r}: give http:// or https://, then host and port")


@lru_cache(maxsize=16)
def _require_certificates(bundle: str) -> None:
    try:
        ssl.create_default_context(cafile=bundle)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = "is not there" if isinstance(error, FileNotFoundError) else f"holds no certificates ({error})"
        raise failure(
            StorageError,
            f"{_BUNDLE} names {bundle}, which {why}: give the PEM file of your authority, or unset it",
        ) from None
