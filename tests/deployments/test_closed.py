"""The stack's server is closed to other pages, names and users: `make up` for real, in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from stat import S_IMODE
from typing import Any

import httpx
import psutil
import pytest
from local_stack import ROOT, SECRET, LocalStack, csrf_headers, free_port, wait_for
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from deployments import login, processes
from deployments.processes import Program

pytestmark = pytest.mark.server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REBOUND = "rebound.example"  # a name of someone else's that means this machine
ALONE = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
]  # fmt: skip
DOCTOR = ("segpipe", "doctor", "--json")
WRONG = "segpipe:not-the-login"
MADE = "made-by-another-page"
# What a page of another origin can send: with headers of its own, and as a form does, of which a browser asks
# nobody first. Prefect takes what comes without a content type, as from a nameless Blob, for JSON.
ATTACK = """
async ([api, made, login]) => {
    const tried = {};
    const attempt = async (name, ask) => {
        try { const answer = await ask(); tried[name] = answer.type + " " + answer.status; }
        catch (error) { tried[name] = error.name; }
    };
    const authorized = {"Authorization": "Basic " + btoa(login)};
    const json = {"Content-Type": "application/json"};
    const bodies = {
        "/variables/": {name: made, value: made},
        "/flows/": {name: made},
        "/block_types/": {name: made, slug: made},
    };
    await attempt("health", () => fetch(api + "/health"));
    await attempt("read", () => fetch(api + "/variables/name/any", {credentials: "include"}));
    await attempt("read with the login", () => fetch(api + "/admin/version", {headers: authorized}));
    await attempt("token", () => fetch(api + "/csrf-token?client=a", {headers: authorized}));
    for (const [path, content] of Object.entries(bodies)) {
        const body = JSON.stringify(content);
        await attempt("json " + path, () => fetch(api + path, {method: "POST", headers: json, body}));
        await attempt("json with the login " + path,
                      () => fetch(api + path, {method: "POST", headers: {...json, ...authorized}, body}));
        await attempt("form " + path,
                      () => fetch(api + path, {method: "POST", mode: "no-cors", body: new Blob([body])}));
    }
    for (const path of ["/events/in", "/events/out", "/logs/out"]) {
        for (const protocol of ["prefect", "other"])
            tried["socket " + path + " " + protocol] = await new Promise((done) => {
                const socket = new WebSocket(api.replace("http", "ws") + path, protocol);
                let heard = "nothing";
                socket.onopen = () => {
                    socket.send(JSON.stringify({type: "auth", token: "guessed"}));
                    setTimeout(() => done("stays open"), 20000);
                };
                socket.onmessage = (message) => { heard = message.data; };
                socket.onclose = () => done(heard);
            });
    }
    return tried;
}
"""


@dataclass(frozen=True)
class Closed:
    """A stack that runs, and what was said when it was started."""

    stack: LocalStack
    said: str

    @property
    def pages(self) -> str:
        return self.stack.api.removesuffix("/api")

    def ask(self, path: str, auth: str | None, **request: Any) -> httpx.Response:
        """An answer as a program of this machine gets it, with this login or none."""
        pair = login.as_pair(auth) if auth else None
        return httpx.request("GET", self.stack.api + path, auth=pair, timeout=60, **request)

    def made(self) -> list[str]:
        """What of the other page's is there: variables, flows and block types."""
        names = {
            "variables": {"variables": {"name": {"like_": MADE}}},
            "flows": {"flows": {"name": {"like_": MADE}}},
        }
        found = [
            one["name"]
            for kind, chosen in names.items()
            for one in self.stack.post(f"/{kind}/filter", chosen)
        ]
        types = [one["name"] for one in self.stack.post("/block_types/filter", {})]
        return found + [name for name in types if name == MADE]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder, port = tmp_path_factory.mktemp("closed") / "stack", free_port()
    left_out = ("PREFECT_API_URL", "PREFECT_HOME", "DATABASE", "STACK", "S3")
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | {
        "PORT": str(port),
        "SEGPIPE_WEBHOOK_URL": f"http://127.0.0.1:{free_port()}/{SECRET}",
        # What stands in a user's shell does not open the server, and is not the login.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "*",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false",
        "PREFECT_SERVER_API_AUTH_STRING": WRONG,
        "PREFECT_API_AUTH_STRING": WRONG,
    }
    stack = LocalStack(folder, environment, f"http://127.0.0.1:{port}/api")
    try:
        yield Closed(stack, stack.up())
    finally:
        stack.command("down")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield browser
        browser.close()


@pytest.fixture
def operator(browser: Browser, closed: Closed) -> Iterator[BrowserContext]:
    """The browser of someone who has logged in to Prefect's pages."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(closed.pages)
    log_in(page, closed.stack.login)
    yield context
    context.close()


def log_in(page: Page, text: str) -> None:
    page.fill("input[type=password]", text)
    page.get_by_role("button", name="Login").click()
    page.wait_for_url(lambda url: "/login" not in url)


@contextmanager
def another_origin() -> Iterator[str]:
    """An empty page on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>another page</title>")

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_the_login_is_let_in(closed: Closed) -> None:
    assert closed.ask("/admin/version", closed.stack.login).status_code == 200
    for auth in (None, WRONG, "segpipe:", f"{closed.stack.login}x"):
        assert closed.ask("/admin/version", auth).status_code == 401
        assert closed.ask("/csrf-token", auth, params={"client": "a"}).status_code == 401
    assert closed.ask("/health", None).json() is True


def test_whoever_has_the_login_needs_a_csrf_token_too(closed: Closed) -> None:
    with closed.stack.client() as client:
        assert client.post("/flows/filter", json={}).status_code == 403
        assert client.post("/flows/filter", json={}, headers=csrf_headers(client)).status_code == 200


@pytest.mark.parametrize("host", [REBOUND, f"127.0.0.1.{REBOUND}", "localhost", "0.0.0.0", ""])
def test_another_name_is_answered_nothing(closed: Closed, host: str) -> None:
    for path in ("/health", "/admin/version"):
        answer = closed.ask(path, closed.stack.login, headers={"Host": host})
        assert (answer.status_code, answer.text) == (400, "Invalid host header")


def test_a_page_of_another_origin_can_neither_read_nor_create(
    closed: Closed, operator: BrowserContext
) -> None:
    page = operator.new_page()
    with another_origin() as url:
        page.goto(url)
        # Not even with the login, which such a page cannot have.
        tried = page.evaluate(ATTACK, [closed.stack.api, MADE, closed.stack.login])
    unread = {name: said for name, said in tried.items() if said not in ("TypeError", "nothing", "opaque 0")}
    assert unread == {}
    assert {said for name, said in tried.items() if "login" in name} == {"TypeError"}
    assert closed.made() == []


def test_a_page_under_a_rebound_name_is_answered_nothing(closed: Closed, operator: BrowserContext) -> None:
    page = operator.new_page()
    page.goto(closed.pages.replace("127.0.0.1", REBOUND))
    assert page.inner_text("body") == "Invalid host header"
    read = "url => fetch(url).then(answer => answer.text())"
    assert page.evaluate(read, "/api/health") == "Invalid host header"


def test_the_pages_work_for_whoever_has_the_login_and_for_nobody_else(
    closed: Closed, browser: Browser
) -> None:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{closed.pages}/v2/deployments")
    page.fill("input[type=password]", WRONG)
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text("Invalid credentials")).to_be_visible(timeout=60_000)
    assert "/login" in page.url

    log_in(page, closed.stack.login)
    page.goto(f"{closed.pages}/v2/deployments")
    page.get_by_text("on-bucket").first.wait_for()
    # It writes, too: the page's own requests carry the CSRF token.
    page.goto(f"{closed.pages}/v2/variables")
    page.get_by_role("button", name="Add Variable").first.click()
    page.get_by_label("Name").fill("made_by_hand")
    page.locator(".cm-content").click()
    page.keyboard.type("1")
    page.get_by_role("button", name="Create").click()
    wait_for(
        lambda: closed.ask("/variables/name/made_by_hand", closed.stack.login).is_success, "the variable"
    )


def test_the_login_is_the_owner_s_alone_and_nowhere_to_be_seen(closed: Closed) -> None:
    folder = closed.stack.folder
    file = folder / login.FILE
    assert S_IMODE(file.stat().st_mode) == 0o600
    assert {S_IMODE((folder / name).stat().st_mode) for name in ("", "logs", "prefect")} == {0o700}
    assert re.fullmatch(r"segpipe:[\w-]{43}", closed.stack.login)

    status = closed.stack.command("status").stdout
    password = closed.stack.login.partition(":")[2]
    commands = "".join(
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    )
    for shown in (closed.said, status, commands, closed.stack.logs(), (folder / "settings.json").read_text()):
        assert password not in shown
    assert str(file) in closed.said
    assert str(file) in status


def test_what_make_up_says_lets_a_shell_in(closed: Closed) -> None:
    exports = "\n".join(re.findall(r"^  (export PREFECT_.*)$", closed.said, re.MULTILINE))
    code = "import os; print(os.environ['PREFECT_API_URL'], os.environ['PREFECT_API_AUTH_STRING'])"
    command = ["sh", "-ec", f'{exports}\nexec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [closed.stack.api, closed.stack.login]


def test_the_doctor_and_register_say_what_login_is_wanted(closed: Closed) -> None:
    def run(*arguments: str, **environment: str) -> str:
        own = {**closed.stack.environment, "PREFECT_API_AUTH_STRING": "", "PREFECT_API_URL": closed.stack.api}
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=own | environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def looked_at(**environment: str) -> dict[str, dict[str, str]]:
        return {one["check"]: one for one in json.loads(run(*DOCTOR, **environment))}

    wanted = "the server wants a login: set PREFECT_API_AUTH_STRING"
    refused = "the server refuses what PREFECT_API_AUTH_STRING holds"
    assert wanted in run("deployments.register")
    assert refused in run("deployments.register", PREFECT_API_AUTH_STRING=WRONG)
    elsewhere = {"PREFECT_API_URL": closed.stack.api.replace("127.0.0.1", "localhost")}
    renamed = "the server has another name: set PREFECT_API_URL"
    assert renamed in run("deployments.register", **elsewhere)
    checks = ("prefect server", "work pool", "deployments")
    for environment, said in (
        ({}, wanted), ({"PREFECT_API_AUTH_STRING": WRONG}, refused), (elsewhere, renamed)
    ):  # fmt: skip
        found = looked_at(**environment)
        assert [found[check]["status"] for check in checks] == ["FAIL"] * 3
        for check in checks:
            assert said in found[check]["found"]
    found = looked_at(**closed.stack.access)
    assert [found[check]["status"] for check in checks] == ["ok"] * 3


def test_up_refuses_a_running_server_with_another_login_or_without_one(closed: Closed) -> None:
    file = closed.stack.folder / login.FILE
    before = file.read_text()
    file.write_text(f"{WRONG}\n")
    done = closed.stack.command("up")
    file.write_text(before)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does not take the login" in done.stderr
    assert f"make down STACK={closed.stack.folder} first" in done.stderr
    closed.stack.up()


def test_up_refuses_a_running_server_that_asks_for_no_login(tmp_path: Path) -> None:
    """As one that was started before there was a login."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE", "S3")}
    stack = LocalStack(tmp_path, environment | {"PORT": str(port)}, "")
    answers = (
        "import http.server as h; H = type('H', (h.BaseHTTPRequestHandler,), "
        "{'do_GET': lambda s: (s.send_response(200), s.end_headers())}); "
        f"h.HTTPServer(('127.0.0.1', {port}), H).serve_forever()"
    )
    processes.start(tmp_path, Program("server", (sys.executable, "-c", answers), dict(os.environ)))
    try:
        done = stack.command("up")
    finally:
        processes.stop(tmp_path, "server", 5)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "runs without a login" in done.stderr
    assert f"make down STACK={tmp_path} first" in done.stderr
