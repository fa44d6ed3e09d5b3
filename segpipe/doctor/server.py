"""The Prefect server that PREFECT_API_URL names, and whose clock is right; asked over HTTP."""

from __future__ import annotations

import os
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import httpx

from segpipe.doctor.findings import Finding
from segpipe.errors import RunError
from segpipe.redaction import redact

POOL = "segpipe"
DEPLOYMENTS = frozenset({"nightly", "on-bucket", "buckets", "weekly", "manual", "sync"})
ANSWER_SECONDS = 10.0
WORST_SKEW_SECONDS = 15.0  # a quarter of a claim's lease, which is told by the clocks of two machines
_NO_SERVER = ("PREFECT_API_URL is not set", "make up starts a server; export what it prints")


def check_server() -> Finding:
    """It answers, and is of this client's version."""
    if not _api():
        return Finding("prefect server", "skip", *_NO_SERVER)
    answer = _ask("/admin/version")
    if answer != (own := version("prefect")):
        return Finding(
            "prefect server", "warn", f"version {answer}, the client has {own}", "install the same"
        )
    return Finding("prefect server", "ok", f"version {answer} at {redact(_api())}")


def check_pool() -> Finding:
    """The work pool is there, and a worker looks at it."""
    if not _api():
        return Finding("work pool", "skip", _NO_SERVER[0])
    pool = _ask(f"/work_pools/{POOL}")
    if pool["status"] != "READY":
        remedy = f"prefect worker start --pool {POOL} --limit 2"
        return Finding("work pool", "FAIL", f"{POOL} is {pool['status']}: no worker looks at it", remedy)
    return Finding("work pool", "ok", f"{POOL} has a worker")


def check_deployments() -> Finding:
    """All of deployments/prefect.yaml are on the server."""
    if not _api():
        return Finding("deployments", "skip", _NO_SERVER[0])
    found = _ask("/deployments/filter", {})
    missing = sorted(DEPLOYMENTS - {deployment["name"] for deployment in found})
    if missing:
        remedy = "prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml"
        return Finding("deployments", "FAIL", f"missing: {', '.join(missing)}", remedy)
    return Finding("deployments", "ok", ", ".join(sorted(DEPLOYMENTS)))


def check_clock(place: str | None) -> Finding:
    """This machine's clock against the storage server's and the Prefect server's."""
    asked = {"storage": _storage_url(place), "Prefect server": _api() and f"{_api()}/health"}
    skews = {name: skew for name, url in asked.items() if url and (skew := _skew(url)) is not None}
    if not skews:
        return Finding("clock", "skip", "no server to compare with")
    shown = ", ".join(f"{_ahead(skew)} the {name}'s" for name, skew in skews.items())
    if max(abs(skew) for skew in skews.values()) > WORST_SKEW_SECONDS:
        return Finding("clock", "FAIL", shown, "set the clock (NTP): rows are stamped by it")
    return Finding("clock", "ok", shown)


def _ahead(skew: float) -> str:
    return f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'}"


def _api() -> str:
    return os.environ.get("PREFECT_API_URL", "").rstrip("/")


def refusal(answer: httpx.Response, api_url: str) -> str | None:
    """Why a server that is closed to others lets a request not in, and the remedy; None for other answers."""
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return f"{redact(api_url)}: the server {_login_wanted()}; make up says where it is kept"
    if answer.status_code == httpx.codes.BAD_REQUEST and "Invalid host" in answer.text:
        return f"{redact(api_url)}: the server has another name: set PREFECT_API_URL as make up prints it"
    return None


def _login_wanted() -> str:
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        if os.environ.get(name):
            return f"refuses what {name} holds: set it to the server's login"
    return "wants a login: set PREFECT_API_AUTH_STRING"


def _ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The parsed answer. Raises RunError that names the address and the reason."""
    url = _api() + path
    try:
        with httpx.Client(headers=_login(), timeout=ANSWER_SECONDS) as client:
            if body is None:
                return _let_in(client.get(url)).json()
            return _let_in(client.post(url, json=body, headers=_token(client))).json()
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{url}: {reason}; make status says whether the stack runs") from None


def _token(client: httpx.Client) -> dict[str, str]:
    """What a server that protects itself from other pages wants to see in a POST; nothing from others."""
    asker = str(uuid4())
    answer = client.get(f"{_api()}/csrf-token", params={"client": asker})
    if answer.status_code in (httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.NOT_FOUND):  # it is off; no such
        return {}
    return {"Prefect-Csrf-Token": _let_in(answer).json()["token"], "Prefect-Csrf-Client": asker}


def _let_in(answer: httpx.Response) -> httpx.Response:
    if reason := refusal(answer, _api()):
        raise RunError(reason)
    return answer.raise_for_status()


def _login() -> dict[str, str]:
    """What Prefect's own client would show a server that asks who it is."""
    if user_and_password := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {b64encode(user_and_password.encode()).decode()}"}
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _storage_url(place: str | None) -> str | None:
    if place is None or not place.startswith(("s3://", "s3a://")):
        return None
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return own or "https://s3.amazonaws.com"


def _skew(url: str) -> float | None:
    """Seconds that the server's clock is ahead of ours; None when it does not say."""
    try:
        sent = datetime.now(UTC)
        answer = httpx.get(url, timeout=ANSWER_SECONDS)
        between = sent + (datetime.now(UTC) - sent) / 2
        told = parsedate_to_datetime(answer.headers["Date"])
    except (httpx.HTTPError, KeyError, ValueError):
        return None
    return (told - between).total_seconds()
