"""The few calls of Label Studio's HTTP interface that push and pull need (seen working with 1.23)."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
)

from segpipe.errors import ReviewError
from segpipe.printable import printable
from segpipe.redaction import redact

TASKS_PER_PAGE = 512  # a power of two: a page that cannot be read is asked for in halves
_TIMEOUT = httpx.Timeout(60, connect=10)
_LONG_TIMEOUT = httpx.Timeout(300, connect=10)  # an import of 50 MB of drafts is answered once it is stored
_REPEATABLE = ("GET", "DELETE")
_REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE)
_TOKEN_SECONDS = 240  # a personal token buys others that live 300 s


@dataclass(frozen=True)
class Project:
    """A project of the server; label_config is its interface as XML."""

    id: int
    title: str
    label_config: str


class RefusedError(ReviewError):
    """The server takes what was sent for wrong or too large; a part of it may be taken."""


class UnreadableError(ReviewError):
    """An answer is JSON that cannot be read; one for fewer tasks may be."""


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
        raise _no_label_studio(server, answer.request.url.path)
    return str(found["access"])


class LabelStudio:
    """A connection to a server; what fails raises ReviewError, and the token is in no message."""

    def __init__(self, server: str, client: httpx.Client) -> None:
        self.server, self._client = server, client

    def projects(self, title: str) -> list[Project]:
        """The projects of exactly this title, the oldest first."""
        found = self._pages("/api/projects/", {}, "results")
        of_title = [one for one in found if isinstance(one, dict) and one.get("title") == title]
        return sorted(map(self._project, of_title), key=lambda one: one.id)

    def create_project(self, title: str, label_config: str) -> Project:
        """A new project that shows its tasks in the order of their numbers, with the draft in the editor."""
        fields: dict[str, Any] = {"title": title, "label_config": label_config}
        fields |= {"sampling": "Sequential sampling"}
        fields |= {"show_collab_predictions": True}
        return self._project(self._call("POST", "/api/projects/", json=fields))

    def remove_project(self, project: Project) -> None:
        """Delete a project; gone already is as good."""
        self._call("DELETE", f"/api/projects/{project.id}/", accepted=(404,))

    def tasks(self, project: Project) -> Iterator[object]:
        """All tasks by number, without what was drawn: id, data, how many annotations, skips and drafts.

        A row that cannot be read is given as {}.
        """
        return self._pages(
            "/api/tasks/",
            {"project": project.id, "fields": "task_only", "ordering": "id"},
            "tasks",
        )

    def add_tasks(self, project: Project, tasks: Sequence[dict[str, Any]]) -> bool:
        """Import tasks, all or none; False: a busy server has stored them without their drafts.

        Raises RefusedError: it takes none of them as they are.
        """
        path = f"/api/projects/{project.id}/import"
        parameters = {"return_task_ids": "true"}
        added = self._call("POST", path, params=parameters, json=list(tasks), timeout=_LONG_TIMEOUT)
        if not isinstance(added, dict) or not isinstance(added.get("task_ids"), list):
            raise _no_label_studio(self.server, path)
        if len(added["task_ids"]) != len(tasks):
            raise ReviewError(f"Label Studio took {len(added['task_ids'])} of {len(tasks)} tasks: push again")
        return bool(added.get("prediction_count") == sum("predictions" in task for task in tasks))

    def remove_task(self, task_id: int) -> None:
        """Delete a task; gone already is as good."""
        self._call("DELETE", f"/api/tasks/{task_id}/", accepted=(404,))

    def annotated(self, project: Project, task_ids: Sequence[int]) -> list[object]:
        """These tasks with their annotations, by the JSON export (skipped ones too).

        Raises UnreadableError: one of them keeps all from being read.
        """
        parameters = [("exportType", "JSON"), ("download_all_tasks", "true")]
        parameters += [("ids[]", str(task_id)) for task_id in task_ids]
        path = f"/api/projects/{project.id}/export"
        return self._list(path, params=parameters, timeout=_LONG_TIMEOUT)

    def buckets(self, project: Project) -> set[str]:
        """The buckets that the project is connected to."""
        found = self._list("/api/storages/s3", params={"project": project.id})
        return {str(one.get("bucket")) for one in found if isinstance(one, dict)}

    def connect_bucket(self, project: Project, fields: dict[str, Any]) -> None:
        """Let the project show the images of a bucket; the credentials are the server's own."""
        self._call("POST", "/api/storages/s3", json={"project": project.id} | fields)

    def people(self) -> dict[int, str]:
        """The e-mail address of each user that the token may see."""
        found = [user for user in self._list("/api/users/") if isinstance(user, dict)]
        return {user["id"]: str(user.get("email")) for user in found if isinstance(user.get("id"), int)}

    def _project(self, found: object) -> Project:
        match found:
            case {"id": int(number), "title": str(title), "label_config": str(config)}:
                return Project(number, title, config)
        raise _no_label_studio(self.server, "/api/projects/")

    def _list(self, path: str, **request: Any) -> list[object]:
        found = self._call("GET", path, **request)
        if not isinstance(found, list):
            raise _no_label_studio(self.server, path)
        return found

    def _pages(self, path: str, parameters: dict[str, Any], rows: str) -> Iterator[object]:
        page = 1
        while found := self._page(path, parameters, rows, page, TASKS_PER_PAGE):
            yield from found
            if len(found) < TASKS_PER_PAGE:
                return
            page += 1

    def _page(self, path: str, parameters: dict[str, Any], rows: str, page: int, size: int) -> list[object]:
        """The rows of a page, in halves where one of them cannot be read; none after the last page."""
        answer = self._answer("GET", path, params=parameters | {"page": page, "page_size": size})
        if page > 1 and answer.status_code == httpx.codes.NOT_FOUND:
            return []
        try:
            return _rows(answer, self.server, rows)
        except UnreadableError:
            if size == 1:
                return [{}]
        halves = (self._page(path, parameters, rows, half, size // 2) for half in (2 * page - 1, 2 * page))
        return [row for half in halves for row in half]

    def _call(self, method: str, path: str, accepted: tuple[int, ...] = (), **request: Any) -> Any:
        answer = self._answer(method, path, **request)
        return {} if answer.status_code in accepted else _content(answer, self.server)

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._sent(method, path, request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = in_one_line(str(error)) or type(error).__name__
            raise ReviewError(
                f"Label Studio at {redact(self.server)} does not answer: {reason}; start it or "
                "correct its address"
            ) from error

    def _sent(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        if method not in _REPEATABLE:  # what timed out may have been done
            return self._client.request(method, path, **request)
        retrying = Retrying(
            stop=stop_after_attempt(4),
            wait=wait_exponential(max=10),
            retry=retry_if_exception_type(httpx.TransportError) | retry_if_result(_failed_within),
            retry_error_callback=_last_word,
        )
        return retrying(self._client.request, method, path, **request)


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


def _failed_within(answer: httpx.Response) -> bool:
    """So it answers where another push removed meanwhile what was asked of, and while it is too busy."""
    return answer.is_server_error


def _last_word(attempts: RetryCallState) -> httpx.Response:
    assert attempts.outcome is not None
    return attempts.outcome.result()


def _content(answer: httpx.Response, server: str) -> Any:
    if answer.status_code in _REFUSED:
        raise RefusedError(_refusal(answer, server))
    if answer.is_error:
        raise ReviewError(_refusal(answer, server))
    if answer.has_redirect_location:
        raise ReviewError(_redirection(answer, server))
    try:
        return json.loads(answer.content) if answer.content else {}
    except (ValueError, RecursionError) as error:
        if answer.content.lstrip()[:1] in (b"[", b"{"):
            raise UnreadableError(
                f"Label Studio at {redact(server)} answered JSON that cannot be read to "
                f"{answer.request.url.path} ({in_one_line(str(error))}); look at what was stored there"
            ) from error
        raise _no_label_studio(server, answer.request.url.path) from error


def _rows(answer: httpx.Response, server: str, rows: str) -> list[object]:
    found = _content(answer, server)
    if not isinstance(found, dict) or not isinstance(found.get(rows), list):
        raise _no_label_studio(server, answer.request.url.path)
    return list(found[rows])


def _no_label_studio(server: str, path: str) -> ReviewError:
    return ReviewError(f"{redact(server)} is no Label Studio, by its answer to {path}: correct the address")


def _redirection(answer: httpx.Response, server: str) -> str:
    where = f"Label Studio at {redact(server)}"
    try:
        target = answer.request.url.join(answer.headers["Location"]).copy_with(query=None, fragment=None)
    except httpx.InvalidURL:
        return f"{where} redirects to what is no address: correct the address"
    address = str(target).removesuffix(answer.request.url.path)
    return f"{where} redirects to {redact(address)}: give that address"


def _refusal(answer: httpx.Response, server: str) -> str:
    where = f"Label Studio at {redact(server)}"
    if answer.status_code in (401, 403):
        return f"{where} refuses the token ({answer.status_code}): make one in Account & Settings"
    said = in_one_line(redact(answer.text))
    return (
        f"{where} answered {answer.status_code} to {answer.request.method} {answer.request.url.path}: {said}"
    )


def in_one_line(said: str) -> str:
    """What another program says, at most 300 characters of it, none of which steers a terminal."""
    return printable(" ".join(said[:1000].split()))[:300]
