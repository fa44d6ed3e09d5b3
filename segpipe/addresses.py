"""What a text names as a place: a path or scheme://bucket/key; what is mistyped is refused, not guessed.

A URL that lost a slash, as str(Path("s3://bucket/x")) does, would otherwise be a folder on this disk.
"""

from __future__ import annotations

import os
import re
import unicodedata

from segpipe.errors import AddressError
from segpipe.redaction import redact

LOCAL_SCHEMES = ("", "file", "local")
_URL = re.compile(r"([A-Za-z][\w+.:-]*)://(.*)", re.DOTALL)
_REMOTE = "s3|s3a|s3n|gs|gcs|abfs|abfss|az|adl|wasb|wasbs|oss|oci|https?|hdfs|webhdfs|sftp|ftp|smb|webdavs?"
_STARTS_LIKE_A_URL = re.compile(
    rf"\W*(?:((?:{_REMOTE}|file|local|memory):+)[/\\]*|((?:{_REMOTE})[/\\]{{2,}}))(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_HOLDS_A_COLLAPSED_URL = re.compile(
    rf"/\W*((?:{_REMOTE}|file|memory):)(?:/+|$)(?P<rest>.*)", re.IGNORECASE | re.DOTALL
)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PASSWORD = re.compile(r"[^/@]*:[^/]*@")
_WITHOUT_A_HOST = ("memory",)


def split(url: str) -> tuple[str, str]:
    """Scheme ('' for a plain path, 's3' for s3a) and what follows '://'."""
    match = _URL.fullmatch(url)
    if not match:
        return "", url
    scheme = match[1].lower()
    return "s3" if scheme == "s3a" else scheme, match[2]


def is_local(url: str) -> bool:
    """Whether it is a place on this machine's disk."""
    return split(url)[0] in LOCAL_SCHEMES


def folded(path: str) -> str:
    """What two paths have in common that a disk may take for one: case and Unicode's forms do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def is_utf8(text: str) -> bool:
    """Whether it can be written as UTF-8: what a disk or a command line holds may be other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def bucket_and_key(url: str) -> tuple[str, str]:
    """The parts of scheme://bucket/key."""
    bucket, _, key = split(url)[1].partition("/")
    return bucket, key


def normalise(url: str | os.PathLike[str]) -> str:
    """Absolute plain path, or scheme://bucket/key; no trailing '/'. AddressError on one we cannot keep."""
    text = os.fspath(url)
    require_address(text)
    scheme, path = split(text)
    if scheme in LOCAL_SCHEMES:
        return os.path.abspath(os.path.expanduser(path))
    return f"{scheme}://{path}".rstrip("/")


def require_address(text: str) -> None:
    """Raises AddressError, which says what was probably meant, for a text that names no place."""
    scheme, path = split(text)
    if not path:
        raise _refused(text, "names no folder; give a path or scheme://bucket/folder")
    if text != text.strip():
        raise _refused(text, "has spaces around it; leave them out")
    if not is_utf8(text):
        raise _refused(text, "is not UTF-8; rename the folder")
    if _CONTROL.search(text):
        raise _refused(text, "holds control characters; leave them out")
    if text.lower().startswith("arn:") or path.lower().startswith("arn:"):
        raise _refused(text, "is an ARN; give s3://bucket/folder, for an access point s3://its-alias/folder")
    if scheme in LOCAL_SCHEMES:
        _require_path(text, scheme, path)
    else:
        _require_url(text, scheme, path)


def _require_path(text: str, scheme: str, path: str) -> None:
    if scheme and not path.startswith("/"):
        raise _refused(text, f"is no absolute path; give {scheme}:///{path} or {path}")
    if not scheme:
        _require_no_url_in(path)
    if _WINDOWS.match(path):
        raise _refused(text, "is a Windows path; give a path of this machine")
    if "\\" in path:
        raise _refused(text, f"holds a backslash; did you mean {_with_slashes(path)}?")


def _require_no_url_in(path: str) -> None:
    """A plain path is none of a URL that lost something on its way here."""
    if found := _STARTS_LIKE_A_URL.fullmatch(path) or _HOLDS_A_COLLAPSED_URL.search(path):
        scheme = re.sub(r"\W", "", next(group for group in found.groups() if group)).lower()
        rest = _with_slashes(found["rest"]).strip("/\"'")
        meant = f"/{rest}" if scheme in LOCAL_SCHEMES else f"{scheme}://{rest}"
        raise _refused(path, f"is neither a path nor a URL; did you mean {meant}?")
    if "://" in path:
        raise _refused(path, "is neither a path nor a URL; give scheme://bucket/folder or a path")


def _require_url(text: str, scheme: str, path: str) -> None:
    if _PASSWORD.match(path):
        # URIs end up in manifests, so a password in one would be published there.
        raise _refused(text, "carries a password; give credentials in the environment instead")
    if "\\" in path:
        raise _refused(text, f"holds a backslash; did you mean {_with_slashes(text)}?")
    if path.startswith("/") and scheme not in _WITHOUT_A_HOST:
        meant = path.strip("/")
        raise _refused(
            text, f"names no bucket; did you mean {scheme}://{meant}?" if meant else "names no bucket"
        )


def _with_slashes(text: str) -> str:
    return text.replace("\\", "/")


def _refused(text: str, reason: str) -> AddressError:
    return AddressError(" ".join(redact(f"'{text}' {reason}").split()))
