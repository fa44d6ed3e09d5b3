"""What storage does when a call fails: try again, or say in one clean line what to do; no secret gets out."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from segpipe.errors import (
    AlreadyExistsError,
    ArchivedError,
    DeniedError,
    NotFoundError,
    StorageError,
    UnwritableError,
)
from segpipe.redaction import redact
from segpipe.storage.remedies import Answer, answer_of, is_archived, is_denied, is_no_s3, remedy_of, types_of

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
_UNWRITABLE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_FULL_CODES = {"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"}
_TRANSIENT_ERRNO = {errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH}


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
    return isinstance(error, FileExistsError) or answer_of(error).status in (409, 412)


def _explain(error: Exception, uri: str) -> StorageError:
    error = really(error)
    answer = answer_of(error)
    if answer.code == "NoSuchBucket":
        bucket = uri.partition("://")[2].partition("/")[0]
        return failure(NotFoundError, f"{uri}: bucket {bucket} does not exist; create it or correct the name")
    if (isinstance(error, FileNotFoundError) or answer.status in (404, 410)) and not is_no_s3(error):
        return failure(NotFoundError, f"{uri} does not exist; correct the name or create it")
    if is_conflict(error):
        return failure(AlreadyExistsError, f"{uri} already exists; delete it or choose another name")
    message = _one_line(f"{uri}: {_said(error, answer)}; {remedy_of(error, uri)}")
    if is_archived(error):
        return ArchivedError(message, answer.details.get("StorageClass"))
    if _is_unwritable(error, answer):
        return UnwritableError(message)
    return DeniedError(message) if is_denied(error) else StorageError(message)


def _is_unwritable(error: Exception, answer: Answer) -> bool:
    return (
        answer.status == HTTPStatus.INSUFFICIENT_STORAGE
        or answer.code in _FULL_CODES
        or getattr(error, "errno", None) in _UNWRITABLE_ERRNO
    )


def _said(error: Exception, answer: Answer) -> str:
    """Code and reason, without the numbers that a client made up for them."""
    return f"{answer.code or type(error).__name__}: {answer.details.get('Message') or error}"


def really(error: Exception) -> Exception:
    """The error behind a FileNotFoundError that stands for any failure at all, as that of HTTP's client."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    answer = answer_of(cause)
    is_absence = isinstance(cause, FileNotFoundError) or answer.code or answer.status in (404, 410)
    known = types_of(cause) & {"ClientError", "OSError", "TimeoutError"}
    return cause if known and not is_absence else error


def _is_transient(error: BaseException) -> bool:
    error = really(error) if isinstance(error, Exception) else error
    answer = answer_of(error)
    if answer.code or answer.status:
        return answer.status in _TRANSIENT_STATUS or answer.code in _TRANSIENT_CODES
    return bool(types_of(error) & _TRANSIENT_TYPES) or getattr(error, "errno", None) in _TRANSIENT_ERRNO


def _log_retry(uri: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.debug(
        _one_line(f"{uri}: attempt {state.attempt_number} of {ATTEMPTS} failed ({error}), trying again")
    )


def _one_line(text: str) -> str:
    return " ".join(redact(text).split())
