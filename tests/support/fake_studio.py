"""A local HTTP server that answers push and pull as Label Studio does, and as it does on bad days."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class FakeStudio:
    """One server: its projects, its tasks by number, and what people have answered.

    The first `drops_drafts` imports store no draft; `refuses`: imports with such an image are answered 400.
    `made_by_another`: a project that another push makes just before ours. `annotations`: by number of the
    task; a text is sent as it is, be it JSON or not, and so is what `rows` has for a task in the list. After
    `holds_after` imports the next is `held`, unanswered, until `let_go`.
    """

    def __init__(self, url: str, drops_drafts: int) -> None:
        self.url, self.drops_drafts = url, drops_drafts
        self.refuses: set[str] = set()
        self.made_by_another: dict[str, Any] | None = None
        self.projects: list[dict[str, Any]] = []
        self.tasks: dict[int, dict[str, Any]] = {}
        self.drafts: dict[int, list[dict[str, Any]]] = {}
        self.annotations: dict[int, list[Any] | str] = {}
        self.rows: dict[int, str] = {}
        self.users = b'[{"id": 1, "email": "reviewer@example.com"}]'
        self.buckets: list[dict[str, Any]] = []
        self.import_answer: object = None
        self.holds_after: int | None = None
        self.held, self.let_go = threading.Event(), threading.Event()
        self._number = 0

    def answer(self, method: str, url: str, body: Any) -> tuple[int, dict[str, str], Any]:  # noqa: C901
        asked = parse_qs(urlsplit(url).query)
        match method, urlsplit(url).path.strip("/").split("/")[1:]:
            case "GET", ["projects"]:
                return 200, {}, {"results": self.projects}
            case "POST", ["projects"]:
                body = body | {"title": body["title"].strip()}
                others = [] if self.made_by_another is None else [self.made_by_another | {"id": self._next()}]
                self.projects += [*others, body | {"id": self._next()}]
                return 200, {}, self.projects[-1]
            case "DELETE", ["projects", number]:
                self.projects = [one for one in self.projects if one["id"] != int(number)]
                return 200, {}, {}
            case "GET", ["tasks"]:
                return self._listed(int(asked["page"][0]), int(asked["page_size"][0]))
            case "DELETE", ["tasks", number]:
                return 200, {}, self.tasks.pop(int(number))
            case "POST", ["projects", _, "import"]:
                return self._imported(body)
            case "GET", ["projects", _, "export"]:
                return 200, {}, _texts([self._exported(int(number)) for number in asked["ids[]"]])
            case "GET", ["users"]:
                return 200, {}, self.users
            case "GET", ["storages", "s3"]:
                return 200, {}, self.buckets
            case "POST", ["storages", "s3"]:
                self.buckets.append(body)
                return 200, {}, body
        raise AssertionError(f"nobody asks {method} {url}")

    def _listed(self, page: int, size: int) -> tuple[int, dict[str, str], bytes]:
        rows = [self.rows.get(number) or json.dumps(self._row(number)) for number in sorted(self.tasks)]
        chosen = rows[(page - 1) * size : page * size]
        if page > 1 and not chosen:
            return 404, {}, b"{}"
        return 200, {}, b'{"tasks": ' + _texts(chosen) + b"}"

    def _row(self, number: int) -> dict[str, Any]:
        return {"total_annotations": int(number in self.annotations)} | self.tasks[number]

    def _exported(self, number: int) -> str:
        answers = self.annotations[number]
        text = answers if isinstance(answers, str) else json.dumps(answers)
        return f'{{"id": {number}, "data": {json.dumps(self.tasks[number]["data"])}, "annotations": {text}}}'

    def _imported(self, tasks: list[dict[str, Any]]) -> tuple[int, dict[str, str], Any]:
        if self.holds_after == 0:
            self.held.set()
            self.let_go.wait()
            return 503, {}, {}
        if self.holds_after is not None:
            self.holds_after -= 1
        if self.import_answer is not None:
            return 200, {}, self.import_answer
        if self.refuses & {task["data"]["image"] for task in tasks}:
            return 400, {}, {"detail": "Validation error"}
        stored = [[] if self.drops_drafts else task.get("predictions", []) for task in tasks]
        self.drops_drafts = max(0, self.drops_drafts - 1)
        ids = [self._next() for _ in tasks]
        for number, task, drafts in zip(ids, tasks, stored, strict=True):
            self.tasks[number] = {"id": number, "data": task["data"], "total_predictions": len(drafts)}
            self.drafts[number] = [one for draft in task.get("predictions", []) for one in draft["result"]]
        return 200, {}, {"task_ids": ids, "prediction_count": sum(len(drafts) for drafts in stored)}

    def _next(self) -> int:
        self._number += 1
        return self._number


def _texts(values: list[str]) -> bytes:
    return f"[{','.join(values)}]".encode()


@contextmanager
def fake_studio(drops_drafts: int = 0) -> Iterator[FakeStudio]:
    """A server that runs until the block ends."""
    with http_server(lambda method, url, body: studio.answer(method, url, body)) as url:
        studio = FakeStudio(url, drops_drafts)
        yield studio


@contextmanager
def http_server(answer: Any) -> Iterator[str]:
    """The address of a server whose answers are (status, headers, body) of (method, path?query, body)."""

    class Handler(BaseHTTPRequestHandler):
        def _answered(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answer(self.command, self.path, json.loads(sent) if sent else None)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # who has asked was killed
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answered  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
