"""No secret gets out: passwords, signatures and keys in texts that people or files get to see become ***."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_URL_PASSWORD = re.compile(r"(://)[^/\s:@]*:(?!\d+/)(?:[^\s/]*@|[^\s@]*@)")  # a lone port is no password
_SECRET_VALUE = re.compile(
    r"((?:[?&;,\s]|^)(?:[\w.-]*(?:signature|credential|token|secret|password|passwd|api[_-]?key|accesskey(?:id)?)"
    r"|sig))=[^&;,\s\"'<>]+",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(SECRET|KEY|KEY_ID|TOKEN|PASSWORD|PASSWD|PASSPHRASE|AUTH_STRING)$", re.IGNORECASE
)


def redact(text: str) -> str:
    """`text` with URL passwords, signed-URL values and values of secret environment variables as ***."""
    # Shorter values ("1", "test") are no secrets, and hiding them would riddle every message.
    secrets = {
        value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 6
    }
    for secret in sorted(secrets | {quote(s, safe="") for s in secrets}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET_VALUE.sub(r"\1=***", _URL_PASSWORD.sub(r"\1***@", text))
