"""What a storage failure means and what to do about it, by error code first: a status says too little."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "the bucket is in another region, set AWS_REGION to that one"
_CLOCK = "this machine's clock is off by minutes, set it (NTP)"
_NEW_SESSION = "the credentials have expired, get new ones (AWS_SESSION_TOKEN, or log the profile in again)"
_SESSION_VALUE = "the session token is not accepted, check AWS_SESSION_TOKEN; without a session unset it"
_KMS_KEY = "its encryption key cannot be used, enable it or give these credentials kms:Decrypt on it"
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
    "SSLError": "its certificate is not trusted, name the file of your own authority in AWS_CA_BUNDLE",
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


def types_of(error: BaseException) -> set[str]:
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
    answer, types = answer_of(error), types_of(error)
    for name in types & _BY_TYPE.keys():
        return _BY_TYPE[name]
    if "://" not in uri:
        return "check the path, its permissions and the disk"
    if answer.code in _COLD_CODES:
        return "it is in cold storage, restore it or copy it to another storage class"
    if _is_about_kms(answer):
        return _KMS_KEY
    if answer.code in _BY_CODE:
        return _BY_CODE[answer.code]
    if is_denied(error) or answer.status == 401:
        return f"access refused, {_of_denial(answer, uri)}"
    if endpoint := getattr(error, "kwargs", {}).get("endpoint_url"):
        return f"no answer from {urlsplit(endpoint).netloc}, check AWS_ENDPOINT_URL and the network"
    return "check the URL and the storage server, then try again"


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
