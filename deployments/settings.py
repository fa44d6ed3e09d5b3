"""What a stack is started with: given now, else remembered in its folder, else by default.

Each setting is an environment variable. What is given as empty is the default again. Secrets are not kept:
of DATABASE only a digest, so that another one is noticed, of the webhook's address nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from zoneinfo import available_timezones

from segpipe.errors import RunError
from segpipe.redaction import redact

LOOPBACK = "127.0.0.1"
HOSTS_VARIABLE = "SEGPIPE_SERVER_HOSTS"
FILE = "settings.json"
DEFAULTS = {
    "PORT": "4200",
    "S3": "",
    "S3_PORT": "5555",
    "SEGPIPE_SOURCES": "",
    "SEGPIPE_TIMEZONE": "UTC",
    "SEGPIPE_LABEL_STUDIO": "",
    "SILENT_SECONDS": "300",
}
DATABASE_DIGEST = "DATABASE digest"
LEAST_SILENT_SECONDS = 10


def choose(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The value of each setting. Raises RunError for one that cannot be used, before anything is started."""
    given = {name: environment[name] or default for name, default in DEFAULTS.items() if name in environment}
    before = {name: value for name, value in recall(folder).items() if name in DEFAULTS}
    chosen = DEFAULTS | before | given
    _check(chosen)
    return chosen


def recall(folder: Path) -> dict[str, str]:
    """What was remembered in the folder; nothing where no stack was."""
    file = folder / FILE
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def remember(folder: Path, chosen: Mapping[str, str], database: str | None) -> None:
    """Keep what the stack is started with, but for values that hold a secret; no database: it stays."""
    kept = {name: value for name, value in chosen.items() if redact(value) == value}
    before = recall(folder).get(DATABASE_DIGEST, "")
    kept[DATABASE_DIGEST] = before if database is None else digest(folder, database)
    (folder / FILE).write_text(json.dumps(kept))


def digest(folder: Path, database: str) -> str:
    """What tells one database's URL from another; slow to make, so that no password is guessed from it."""
    if not database:
        return ""
    return hashlib.scrypt(database.encode(), salt=str(folder).encode(), n=2**14, r=8, p=1).hex()


def check_webhook(url: str) -> None:
    """Raises RunError for what is no address on the web."""
    if url and not url.startswith(("http://", "https://")):
        raise RunError("SEGPIPE_WEBHOOK_URL is no http:// or https:// address: correct or unset it")


def _check(chosen: Mapping[str, str]) -> None:
    for name in ("PORT", "S3_PORT"):
        _check_number(name, chosen[name], 1, 65535)
    _check_number("SILENT_SECONDS", chosen["SILENT_SECONDS"], LEAST_SILENT_SECONDS, 10**6)
    if chosen["S3"] not in ("", "moto"):
        raise RunError(f"S3={chosen['S3']} is unknown: give moto, or nothing for no S3 server")
    if chosen["S3"] and int(chosen["PORT"]) == int(chosen["S3_PORT"]):
        raise RunError(f"PORT and S3_PORT are both {chosen['PORT']}: give each a port of its own")
    if chosen["SEGPIPE_TIMEZONE"] not in available_timezones():
        raise RunError(
            f"SEGPIPE_TIMEZONE={chosen['SEGPIPE_TIMEZONE']} is no time zone: give one like Europe/Berlin"
        )


def _check_number(name: str, text: str, least: int, most: int) -> None:
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        raise RunError(f"{name}={text} cannot be: give a whole number from {least} to {most}")
