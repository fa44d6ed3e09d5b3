"""What storage does when a call fails: try again, or say in one clean line what to do; no secret gets out."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from segpipe.errors import AlreadyExistsError, NotFoundError, StorageError
from segpipe.redaction import redact

T = TypeVar("T")
E = TypeVar("E", bound=StorageError)
logger = logging.getLogger(__name__)

ATTEMPTS = 6
GIVE_UP_SECONDS = 60  # where each attempt meets silence, fewer must do
FIRST_WAIT_SECONDS = 0.25  # doubles up to 8 s, with full jitter: 4 s in all on average


# Types by name, so that a local run does not import botocore and aiohttp to look at an error.
_TRANSIENT_TYPES = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"} | {
    *("ClientPayloadError", "IncompleteRead", "FlexibleChecksumError", "ResponseParserError", "ChangedError")
}
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"}
_TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
_TRANSIENT_ERRNO = {errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH}
_REFUSED_TYPES = {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_S3_VARIABLES = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_ENDPOINT_URL"


class ChangedError(OSError):
    """An object was written while it was read."""


def failure(kind: type[E], message: str) -> E:
    """An error whose message is one line without secrets."""
    return kind(_one_line(message))


def guarded(uri: str, operation: Callable[[], T]) -> T:
    """Run with bounded retries; whatever still fails becomes a StorageError."""
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(GIVE_UP_SECONDS),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=8),
        retry=retry_if_exception(_is_transient),
        before_sleep=partial(_log_retry, uri),
        reraise=True,
    )
    with explained(uri):
        return retrying(operation)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn every error into a StorageError that names `uri`, the reason and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise _explain(error, uri) from None  # the original may hold a signed URL


def is_conflict(error: BaseException) -> bool:
    """Whether an exclusive create met an existing object; servers say it in more than one way."""
    return isinstance(error, FileExistsError) or _response(error)[1] in (409, 412)


def _explain(error: Exception, uri: str) -> StorageError:
    code, _ = _response(error)
    if code == "NoSuchBucket":
        bucket = uri.partition("://")[2].partition("/")[0]
        return failure(NotFoundError, f"{uri}: bucket {bucket} does not exist; create it or correct the name")
    if isinstance(error, FileNotFoundError):
        return failure(NotFoundError, f"{uri} does not exist; correct the name or create it")
    if is_conflict(error):
        return failure(AlreadyExistsError, f"{uri} already exists; delete it or choose another name")
    return failure(StorageError, f"{uri}: {code or type(error).__name__}: {error}; {_remedy(error, uri)}")


def _remedy(error: Exception, uri: str) -> str:
    code, status = _response(error)
    if isinstance(error, UnicodeEncodeError):
        return "a file name below it is not UTF-8, rename it"
    if "://" not in uri:
        return "check the path, its permissions and the disk"
    if code == "InvalidToken" or status in (401, 403) or _types(error) & _REFUSED_TYPES:
        return f"access refused, check {_S3_VARIABLES if uri.startswith('s3') else 'its credentials'}"
    if endpoint := getattr(error, "kwargs", {}).get("endpoint_url"):
        return f"no answer from {urlsplit(endpoint).netloc}, check AWS_ENDPOINT_URL and the network"
    return "check the URL and the storage server, then try again"


def _is_transient(error: BaseException) -> bool:
    code, status = _response(error)
    if code or status:
        return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    return bool(_types(error) & _TRANSIENT_TYPES) or getattr(error, "errno", None) in _TRANSIENT_ERRNO


def _response(error: BaseException) -> tuple[str, int]:
    """S3 error code and HTTP status, also of the error that s3fs translated; ('', 0) when there is none."""
    for candidate in (error, error.__cause__):
        answer = getattr(candidate, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(answer.get("Error", {}).get("Code", "")), int(status)
    return "", 0


def _types(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _log_retry(uri: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.debug(
        _one_line(f"{uri}: attempt {state.attempt_number} of {ATTEMPTS} failed ({error}), trying again")
    )


def _one_line(text: str) -> str:
    return " ".join(redact(text).split())
