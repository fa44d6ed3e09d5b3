"""The few calls of Label Studio's HTTP interface that push and pull need (seen working with 1.23)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from segpipe.errors import ReviewError
from segpipe.redaction import redact

TASKS_PER_PAGE = 500
_TIMEOUT = httpx.Timeout(60, connect=10)
_LONG_TIMEOUT = httpx.Timeout(300, connect=10)  # an import of 50 MB of drafts is answered once it is stored
_TOKEN_SECONDS = 240  # a personal token buys others that live 300 s


@dataclass(frozen=True)
class Project:
    """A project of the server; label_config is its interface as XML."""

    id: int
    title: str
    label_config: str


class _Token(httpx.Auth):
    """A legacy token as it is, a personal one (a JWT) by way of the short-lived ones that it buys."""

    requires_response_body = True

    def __init__(self, token: str, server: str) -> None:
        self._token, self._server = token, server
        self._bought, self._bought_at = "", float("-inf")

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._token.count(".") != 2:
            request.headers["Authorization"] = f"Token {self._token}"
        else:
            if time.monotonic() - self._bought_at > _TOKEN_SECONDS:
                answer = yield httpx.Request(
                    "POST", f"{self._server}/api/token/refresh/", json={"refresh": self._token}
                )
                self._bought, self._bought_at = _bought(answer, self._server), time.monotonic()
            request.headers["Authorization"] = f"Bearer {self._bought}"
        yield request


def _bought(answer: httpx.Response, server: str) -> str:
    found = _content(answer, server)
    if not isinstance(found, dict) or "access" not in found:
        raise _no_label_studio(answer, server)
    return str(found["access"])


class LabelStudio:
    """A connection to a server; what fails raises ReviewError, and the token is in no message."""

    def __init__(self, server: str, client: httpx.Client) -> None:
        self.server, self._client = server, client

    def projects(self, title: str) -> list[Project]:
        """The projects of exactly this title, the oldest first."""
        found = self._pages("/api/projects/", {}, "results")
        return sorted((_project(one) for one in found if one["title"] == title), key=lambda one: one.id)

    def create_project(self, title: str, label_config: str) -> Project:
        """A new project that shows its tasks in the order of their numbers, with the draft in the editor."""
        fields = {"title": title, "label_config": label_config, "sampling": "Sequential sampling"}
        return _project(self._call("POST", "/api/projects/", json=fields | {"show_collab_predictions": True}))

    def remove_project(self, project: Project) -> None:
        """Delete a project; gone already is as good."""
        self._call("DELETE", f"/api/projects/{project.id}/", accepted=(404,))

    def tasks(self, project: Project) -> Iterator[dict[str, Any]]:
        """All tasks by number, without what was drawn: id, data, how many annotations, skips and drafts."""
        return self._pages(
            "/api/tasks/",
            {"project": project.id, "fields": "task_only", "ordering": "id"},
            "tasks",
        )

    def add_tasks(self, project: Project, tasks: Sequence[dict[str, Any]]) -> bool:
        """Import tasks, all or none; False: a busy server has stored them without their drafts."""
        path = f"/api/projects/{project.id}/import"
        parameters = {"return_task_ids": "true"}
        added = self._call("POST", path, params=parameters, json=list(tasks), timeout=_LONG_TIMEOUT)
        if len(added.get("task_ids", ())) != len(tasks):
            raise ReviewError(
                f"Label Studio took {len(added.get('task_ids', ()))} of {len(tasks)} tasks: push again"
            )
        return bool(added.get("prediction_count") == len(tasks))

    def remove_task(self, task_id: int) -> None:
        """Delete a task; gone already is as good."""
        self._call("DELETE", f"/api/tasks/{task_id}/", accepted=(404,))

    def annotated(self, project: Project, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        """These tasks with their annotations, by the JSON export (skipped ones too)."""
        parameters = [("exportType", "JSON"), ("download_all_tasks", "true")]
        parameters += [("ids[]", str(task_id)) for task_id in task_ids]
        path = f"/api/projects/{project.id}/export"
        return list(self._call("GET", path, params=parameters, timeout=_LONG_TIMEOUT))

    def storages(self, project: Project) -> list[dict[str, Any]]:
        """The buckets that the project is connected to."""
        return list(self._call("GET", "/api/storages/s3", params={"project": project.id}))

    def connect_bucket(self, project: Project, fields: dict[str, Any]) -> None:
        """Let the project show the images of a bucket; the credentials are the server's own."""
        self._call("POST", "/api/storages/s3", json={"project": project.id} | fields)

    def people(self) -> dict[int, str]:
        """The e-mail address of each user that the token may see."""
        return {user["id"]: user["email"] for user in self._call("GET", "/api/users/")}

    def _pages(self, path: str, parameters: dict[str, Any], rows: str) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            asked = parameters | {"page": page, "page_size": TASKS_PER_PAGE}
            answer = self._answer("GET", path, params=asked)
            if page > 1 and answer.status_code == httpx.codes.NOT_FOUND:
                return
            found = _rows(answer, self.server, rows)
            yield from found
            if len(found) < TASKS_PER_PAGE:
                return
            page += 1

    def _call(self, method: str, path: str, accepted: tuple[int, ...] = (), **request: Any) -> Any:
        answer = self._answer(method, path, **request)
        return {} if answer.status_code in accepted else _content(answer, self.server)

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._sent(method, path, request)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ReviewError(
                f"Label Studio at {redact(self.server)} does not answer: {reason}; start it or "
                "correct its address"
            ) from error

    def _sent(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        if method != "GET":  # not repeated: what timed out may have been done
            return self._client.request(method, path, **request)
        for attempt in Retrying(
            stop=stop_after_attempt(4),
            wait=wait_exponential(max=10),
            retry=retry_if_exception_type(httpx.TransportError),
            reraise=True,
        ):
            with attempt:
                return self._client.request(method, path, **request)
        raise AssertionError("tenacity returns or raises")


@contextmanager
def open_label_studio(server: str, token: str) -> Iterator[LabelStudio]:
    """A connection to the server at this URL, with a legacy or a personal access token."""
    server = _address(server)
    if not token or not token.isascii() or not token.isprintable():
        raise ReviewError(
            "no token for Label Studio: set LABEL_STUDIO_API_KEY to one from Account & Settings"
        )
    with httpx.Client(base_url=server, auth=_Token(token, server), timeout=_TIMEOUT) as client:
        yield LabelStudio(server, client)


def _address(server: str) -> str:
    """The URL without a slash at its end; what would be printed and stored with it must hold no password."""
    if "@" in server:
        raise ReviewError(
            "the address of Label Studio holds a user: give it without; the token comes from "
            "LABEL_STUDIO_API_KEY"
        )
    if not _is_address(server):
        raise ReviewError(
            f"{redact(server)} is no address of Label Studio: give http://HOST:PORT or https://HOST"
        )
    return server.rstrip("/")


def _is_address(server: str) -> bool:
    try:
        parts = urlsplit(server)
        named = bool(parts.hostname) and parts.port != 0  # reading the port raises where it is no number
        httpx.URL(server)
    except (ValueError, httpx.InvalidURL):
        return False
    return named and parts.scheme in ("http", "https") and not {"?", "#"} & set(server)


def _project(found: dict[str, Any]) -> Project:
    return Project(found["id"], found["title"], found["label_config"])


def _content(answer: httpx.Response, server: str) -> Any:
    if answer.is_error:
        raise ReviewError(_refusal(answer, server))
    if answer.has_redirect_location:
        raise ReviewError(_redirection(answer, server))
    try:
        return answer.json() if answer.content else {}
    except ValueError as error:
        raise _no_label_studio(answer, server) from error


def _rows(answer: httpx.Response, server: str, rows: str) -> list[dict[str, Any]]:
    found = _content(answer, server)
    if not isinstance(found, dict) or not isinstance(found.get(rows), list):
        raise _no_label_studio(answer, server)
    return list(found[rows])


def _no_label_studio(answer: httpx.Response, server: str) -> ReviewError:
    return ReviewError(
        f"{redact(server)} is no Label Studio, by its answer to {answer.request.url.path}: "
        "correct the address"
    )


def _redirection(answer: httpx.Response, server: str) -> str:
    target = answer.request.url.join(answer.headers["Location"]).copy_with(query=None, fragment=None)
    address = str(target).removesuffix(answer.request.url.path)
    return f"Label Studio at {redact(server)} redirects to {redact(address)}: give that address"


def _refusal(answer: httpx.Response, server: str) -> str:
    where = f"Label Studio at {redact(server)}"
    if answer.status_code in (401, 403):
        return f"{where} refuses the token ({answer.status_code}): make one in Account & Settings"
    said = " ".join(redact(answer.text).split())[:300]
    return (
        f"{where} answered {answer.status_code} to {answer.request.method} {answer.request.url.path}: {said}"
    )
