"""A proxy in front of a real S3 server that does to each request what a test decides."""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass(frozen=True)
class Request:
    """What a client asks for; path is decoded and has its query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def matches(self, kind: str) -> bool:
        """Whether a regular expression is found in `METHOD path`, followed by the body where it is JSON."""
        text = f"{self.method} {self.path}" + (f" {self.body.decode()}" if self.body[:1] == b"{" else "")
        return re.search(kind, text) is not None


@dataclass
class Exchange:
    """A request under way: forward it and answer, or do worse."""

    request: Request
    handler: BaseHTTPRequestHandler
    upstream: str
    target: str

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the real server; its status, headers and body."""
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        connection.request(self.request.method, self.target, self.request.body, self.request.headers)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        dropped = ("connection", "transfer-encoding")
        return reply.status, [h for h in reply.getheaders() if h[0].lower() not in dropped], content

    def send(self, status: int, headers: list[tuple[str, str]], content: bytes, missing: int = 0) -> None:
        """Answer; `missing` bytes of the content are announced and not sent."""
        self.handler.send_response(status)
        length = {"Content-Length": str(len(content))}  # but the answer to a HEAD has another's
        for name, value in (length | {name.title(): value for name, value in headers}).items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        if self.request.method != "HEAD":
            self.handler.wfile.write(content[: len(content) - missing])
        self.handler.close_connection = self.handler.close_connection or missing > 0


Action = Callable[[Exchange], None]


def pass_on(exchange: Exchange) -> None:
    """What a proxy is for."""
    exchange.send(*exchange.forward())


def refuse(status: int, code: str) -> Action:
    """Answer with this status and S3 error code; the server never hears of the request."""

    def act(exchange: Exchange) -> None:
        text = f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
        exchange.send(status, [("Content-Type", "application/xml")], text)

    return act


def reset(exchange: Exchange) -> None:
    """Break the connection off with a TCP reset."""
    linger = struct.pack("ii", 1, 0)
    exchange.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    exchange.handler.connection.close()
    exchange.handler.close_connection = True


def stay_silent(exchange: Exchange) -> None:
    """Accept and say nothing until the client goes away."""
    exchange.handler.connection.recv(1)
    exchange.handler.close_connection = True


def lose_the_answer(exchange: Exchange) -> None:
    """The server does as told, and the client never learns of it."""
    exchange.forward()
    exchange.handler.close_connection = True


def cut_short(exchange: Exchange) -> None:
    """The last bytes of the answer do not arrive."""
    status, headers, content = exchange.forward()
    exchange.send(status, headers, content, missing=min(3, len(content)))
    exchange.handler.close_connection = True


class S3Proxy:
    """Does with each request what `decide` says; `seen` keeps them in the order of their arrival."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self.decide: Callable[[Request], Action] = lambda request: pass_on
        self.seen: list[Request] = []
        self._lock = threading.Lock()
        proxy, host = self, upstream.removeprefix("http://").rstrip("/")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, unquote(self.path), dict(self.headers), body)
                with proxy._lock:
                    proxy.seen.append(request)
                    action = proxy.decide(request)
                try:
                    action(Exchange(request, self, host, self.path))
                except ConnectionError:  # the client was killed, or tired of waiting
                    self.close_connection = True

            do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.block_on_close = False
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # broken connections
        if tls:
            # Each connection's thread does its own handshake, so that none keeps the others waiting.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def count(self, kind: str) -> int:
        """How many requests of a kind have been seen."""
        with self._lock:
            return sum(request.matches(kind) for request in self.seen)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class RandomFaults:
    """One of every `every` requests, at random, meets the next fault; the same seed gives the same ones."""

    every: int
    seed: int
    faults: dict[str, Action]
    met: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._place = -1

    def __call__(self, request: Request) -> Action:
        self._place = (self._place + 1) % self.every
        if self._place == 0:
            self._struck = self._random.randrange(self.every)
        if self._place != self._struck:
            return pass_on
        fewest = min(self.met[name] for name in self.faults)
        name = self._random.choice([name for name in self.faults if self.met[name] == fewest])
        self.met[name] += 1
        return self.faults[name]
