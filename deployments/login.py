"""The login of a stack's Prefect server, USER:PASSWORD: made once, kept in a file for its owner alone."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from segpipe.errors import RunError

FILE = "prefect-login"
_USER = "segpipe"
_N_BYTES = 32
_LOGIN = re.compile(r"[!-9;-~]+:[!-~]+")  # ASCII, since Prefect compares nothing else
_OTHERS = 0o077


def login_file(folder: Path) -> Path:
    """Where a stack's login is."""
    return folder / FILE


def make(folder: Path) -> None:
    """A new login, where there is none."""
    with suppress(FileExistsError):
        descriptor = os.open(login_file(folder), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(f"{_USER}:{secrets.token_urlsafe(_N_BYTES)}\n")


def read(folder: Path) -> str:
    """The login. Raises RunError for one that others may know, or that is none."""
    path = login_file(folder)
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            status, text = os.fstat(file.fileno()), file.read().strip()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}): run make down, remove it, make up"
        ) from None
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
        raise RunError(
            f"{path} could be read or written by others: run make down and remove it, and make up makes a "
            "new one (STACK must be on a disk that keeps permissions)"
        )
    if not _LOGIN.fullmatch(text):
        raise RunError(f"{path} holds no USER:PASSWORD in ASCII: remove it, and make up makes a new one")
    return text


def as_pair(login: str) -> tuple[str, str]:
    """User and password, as HTTP clients want them."""
    user, _, password = login.partition(":")
    return user, password
