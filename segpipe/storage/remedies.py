"""What a storage failure means and what to do about it, by error code first: a status says too little."""

from __future__ import annotations

import errno
import os
import pwd
from dataclasses import dataclass
from urllib.parse import urlsplit

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "the bucket is in another region, set AWS_REGION to that one"
_CLOCK = "this machine's clock is off by minutes, set it (NTP)"
_NEW_SESSION = "the credentials have expired, get new ones (AWS_SESSION_TOKEN, or log the profile in again)"
_SESSION_VALUE = "the session token is not accepted, check AWS_SESSION_TOKEN; without a session unset it"
_KMS_KEY = "its encryption key cannot be used, enable it or give these credentials kms:Decrypt on it"
_NO_S3 = "what answers there is no S3 server, check AWS_ENDPOINT_URL"
_EXPIRED_CODES = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_BY_CODE = {
    "RequestTimeTooSkewed": _CLOCK,
    **dict.fromkeys(_EXPIRED_CODES, _NEW_SESSION),
    "InvalidToken": _SESSION_VALUE,
    "InvalidAccessKeyId": "the server knows no such key, check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret does not belong to the key, check AWS_SECRET_ACCESS_KEY",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "Redirect": _REGION,
    "301": _REGION,
    "400": "expired credentials, or a bucket in another region: check AWS_SESSION_TOKEN and AWS_REGION",
    "IllegalLocationConstraintException": _REGION,
    "KeyTooLongError": "an S3 key has at most 1,024 bytes, give a shorter folder",
    "AccountProblem": "the account has a problem, ask its administrator",
    "NotSignedUp": "the account is not signed up for S3, ask its administrator",
}
_BY_TYPE = {
    "ProfileNotFound": "check AWS_PROFILE and the names in ~/.aws/config and ~/.aws/credentials",
    "NoCredentialsError": f"give credentials: {_KEYS}, or AWS_PROFILE",
    "PartialCredentialsError": f"give both {_KEYS}",
    "CredentialRetrievalError": "the credential_process of the profile (AWS_PROFILE) failed, run it by hand",
    "UnauthorizedSSOTokenError": "log in again: aws sso login",
    "SSOTokenLoadError": "log in again: aws sso login",
    "TokenRetrievalError": "log in again: aws sso login",
    "InvalidRegionError": "set AWS_REGION to the bucket's region, as eu-central-1",
    "ResponseParserError": _NO_S3,
    "ParamValidationError": "give the bucket by its name, scheme://bucket/folder",
    "UnicodeEncodeError": "a file name below it is not UTF-8, rename it",
}
_COLD_CODES = {"InvalidObjectState"}
_DENIED_CODES = {
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "InvalidPayer",
    "403",
    "Forbidden",
}
_DENIED_TYPES = {"PermissionError"}


@dataclass(frozen=True)
class Answer:
    """A server's own words about a failure: code ('' if none), HTTP status (0 if none), its other fields."""

    code: str
    status: int
    details: dict[str, str]


def answer_of(error: BaseException) -> Answer:
    """What the server said, also behind an error that a client has translated."""
    for candidate in (error, error.__cause__):
        found = getattr(candidate, "response", None)
        if isinstance(found, dict):
            details = {name: str(value) for name, value in found.get("Error", {}).items()}
            status = int(found.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            return Answer(details.get("Code", ""), status, details)
        http_status = getattr(candidate, "status", None)  # aiohttp's
        if isinstance(http_status, int):
            return Answer("", http_status, {})
    return Answer("", 0, {})


def types_of(error: BaseException | None) -> set[str]:
    """The names of its types, so that no client library is imported to look at an error."""
    return {kind.__name__ for kind in type(error).__mro__}


def is_expired(error: BaseException) -> bool:
    """Whether newer credentials may work; a HEAD has no body to say so, only the status 400."""
    return answer_of(error).code in {*_EXPIRED_CODES, "400"}


def is_archived(error: BaseException) -> bool:
    """Whether the object lies in cold storage."""
    return answer_of(error).code in _COLD_CODES


def is_denied(error: BaseException) -> bool:
    """Whether these credentials are known and may not do this, which waiting does not change."""
    answer = answer_of(error)
    if answer.code:
        return answer.code in _DENIED_CODES or _is_about_kms(answer)
    return answer.status == 403 or bool(types_of(error) & _DENIED_TYPES)


def remedy_of(error: BaseException, uri: str) -> str:
    """What to do, in words that go on after a semicolon."""
    for name in types_of(error) & _BY_TYPE.keys():
        return _BY_TYPE[name]
    if "://" not in uri:
        return _of_disk(error)
    answer = answer_of(error)
    if remedy := _of_answer(answer):
        return remedy
    if is_denied(error) or answer.status == 401:
        return f"access refused, {_of_denial(answer, uri)}"
    return _NO_S3 if is_no_s3(error) else _of_silence(error)


def _of_disk(error: BaseException) -> str:
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT:
            return "make room on its disk, or within the quota"
        case errno.EROFS:
            return "its disk is mounted read-only, remount it writable"
        case errno.EACCES | errno.EPERM:
            return f"check the permissions of it and its folders for {_user()}"
    return "check the path, its permissions and the disk"


def _user() -> str:
    """Who asks, as the system knows it."""
    try:
        return f"the user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"the user id {os.geteuid()}"


def _of_answer(answer: Answer) -> str | None:
    if answer.code in _COLD_CODES:
        return "it is in cold storage, restore it or copy it to another storage class"
    return _KMS_KEY if _is_about_kms(answer) else _BY_CODE.get(answer.code)


def is_no_s3(error: BaseException) -> bool:
    """Whether the server has refused without an error code of S3, which has one for all but a HEAD."""
    operations = [getattr(candidate, "operation_name", "") for candidate in (error, error.__cause__)]
    is_head = any(operation.startswith("Head") for operation in operations)
    return any(operations) and not is_head and answer_of(error).code in ("404", "405", "501")


def _of_encryption(said: str) -> str:
    if "WRONG_VERSION_NUMBER" in said or "record layer failure" in said.lower():
        return "the server speaks no TLS there, write http:// in AWS_ENDPOINT_URL or name its other port"
    if "expired" in said or "not yet valid" in said:
        return "its certificate does not hold today, renew it or set this machine's clock"
    if "doesn't match" in said or "not valid for" in said or "mismatch" in said:
        return "its certificate is for another name, use that name in AWS_ENDPOINT_URL"
    return "its certificate is not trusted, name the file of your own authority in AWS_CA_BUNDLE"


def _of_silence(error: BaseException) -> str:
    details = getattr(error, "kwargs", {})
    host, reason = urlsplit(details.get("endpoint_url") or "").netloc, details.get("error")
    if not host:
        return "check the URL and the storage server, then try again"
    if "SSLError" in types_of(error):
        return _of_encryption(str(error))
    setting = "AWS_REGION" if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else "AWS_ENDPOINT_URL"
    if types_of(reason) & {"ClientConnectorDNSError", "gaierror"}:
        return f"there is no host {host}, check {setting} and the network's names (DNS)"
    if isinstance(getattr(reason, "os_error", None), ConnectionRefusedError):
        return f"nothing listens at {host}, start the storage server or check {setting}"
    return f"no answer from {host}, check {setting} and the network"


def _of_denial(answer: Answer, uri: str) -> str:
    if not uri.startswith("s3"):
        return "check its credentials"
    said = answer.details.get("Message", "").lower()
    if "requester pays" in said or "request-payer" in said or answer.code == "InvalidPayer":
        return "its bucket lets the requester pay: set SEGPIPE_STORAGE_REQUESTER_PAYS=true if you will"
    return (
        f"allow it in the bucket's policy or check {_KEYS}, AWS_SESSION_TOKEN and AWS_ENDPOINT_URL; "
        "if its bucket lets the requester pay, set SEGPIPE_STORAGE_REQUESTER_PAYS=true"
    )


def _is_about_kms(answer: Answer) -> bool:
    said = answer.details.get("Message", "").lower()
    return answer.code.startswith("KMS") or (answer.code in _DENIED_CODES and "kms" in said)
