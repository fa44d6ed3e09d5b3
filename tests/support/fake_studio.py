"""A local HTTP server that answers push as Label Studio does, and as it does when it is busy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class FakeStudio:
    """One server: its projects, and its tasks by number.

    The first `drops_drafts` imports store no draft. `made_by_another`: a project that another push makes just
    before ours.
    """

    def __init__(self, url: str, drops_drafts: int) -> None:
        self.url, self.drops_drafts = url, drops_drafts
        self.made_by_another: dict[str, Any] | None = None
        self.projects: list[dict[str, Any]] = []
        self.tasks: dict[int, dict[str, Any]] = {}
        self._number = 0

    def answer(self, method: str, path: str, body: Any) -> Any:
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["projects"]:
                return {"results": self.projects}
            case "POST", ["projects"]:
                body = body | {"title": body["title"].strip()}
                others = [] if self.made_by_another is None else [self.made_by_another | {"id": self._next()}]
                self.projects += [*others, body | {"id": self._next()}]
                return self.projects[-1]
            case "DELETE", ["projects", number]:
                self.projects = [one for one in self.projects if one["id"] != int(number)]
                return {}
            case "GET", ["tasks"]:
                return {"tasks": list(self.tasks.values())}
            case "DELETE", ["tasks", number]:
                return self.tasks.pop(int(number))
            case "POST", ["projects", _, "import"]:
                return self._imported(body)
        raise AssertionError(f"push asks {method} {path}")

    def _imported(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        drafts = 0 if self.drops_drafts else 1
        self.drops_drafts = max(0, self.drops_drafts - 1)
        ids = [self._next() for _ in tasks]
        for number, task in zip(ids, tasks, strict=True):
            self.tasks[number] = {"id": number, "data": task["data"], "total_predictions": drafts}
        return {"task_ids": ids, "prediction_count": drafts * len(tasks)}

    def _next(self) -> int:
        self._number += 1
        return self._number


@contextmanager
def fake_studio(drops_drafts: int = 0) -> Iterator[FakeStudio]:
    """A server that runs until the block ends."""
    with http_server(lambda method, path, body: (200, {}, studio.answer(method, path, body))) as url:
        studio = FakeStudio(url, drops_drafts)
        yield studio


@contextmanager
def http_server(answer: Any) -> Iterator[str]:
    """The address of a server whose answers are (status, headers, body) of (method, path, body)."""

    class Handler(BaseHTTPRequestHandler):
        def _answered(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answer(
                self.command, urlsplit(self.path).path, json.loads(sent) if sent else None
            )
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answered  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
