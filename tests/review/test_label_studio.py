"""Wrong addresses: each is one line that names the address, the reason and the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import tenacity
from fake_studio import http_server

from segpipe.cli import run
from segpipe.errors import ReviewError
from segpipe.review.label_studio import Project, open_label_studio

PERSONAL = "a.b.c"  # the form of a personal access token, with which another request comes first


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=lambda _: None))


def refused(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str = "legacy"
) -> str:
    """What pull says about this address."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    assert run(["review", "pull", "/nowhere", "--label-studio", server, "--project", "streets"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("token", ["legacy", PERSONAL])
@pytest.mark.parametrize("body", [b"<html></html>", [], {}, {"results": 3}, b""])
def test_what_is_no_label_studio_is_said_so(
    body: Any, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_server(lambda *_: (200, {}, body)) as url:
        said = refused(url, monkeypatch, capsys, token)
    assert f"{url} is no Label Studio" in said
    assert "correct the address" in said


@pytest.mark.parametrize("token", ["legacy", PERSONAL])
def test_an_address_that_redirects_names_the_right_one(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(_: str, path: str, __: object) -> tuple[int, dict[str, str], bytes]:
        return 301, {"Location": f"https://studio.example{path}?page=1"}, b""

    with http_server(answer) as url:
        said = refused(url, monkeypatch, capsys, token)
    assert f"{url} redirects to https://studio.example: give that address" in said


def test_a_server_that_is_not_there_is_said_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_waiting: None
) -> None:
    said = refused("http://127.0.0.1:9", monkeypatch, capsys)
    assert "Connection refused; start it or correct its address" in said


@pytest.mark.parametrize(
    "address",
    [
        "http://studio/?a=b",
        "http://studio/#x",
        "http://",
        "http://studio:port",
        "http://[::1",
        "ftp://studio",
    ],
)
def test_an_address_that_can_be_none_is_refused_before_anything_is_asked(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no address of Label Studio: give http://HOST" in refused(address, monkeypatch, capsys)


@pytest.mark.parametrize("user", ["user:p4ssw0rd", "p4ssw0rd", "user:p4ss/w0rd"])
def test_an_address_with_a_password_is_refused_and_not_shown(
    user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(f"http://{user}@studio:8080", monkeypatch, capsys)
    assert "p4ss" not in said
    assert "the token comes from LABEL_STUDIO_API_KEY" in said


def test_only_what_takes_long_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: dict[str, float] = {}

    def answer(_: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        waited[request.url.path] = request.extensions["timeout"]["read"]
        return httpx.Response(200, json=[] if "export" in request.url.path else {"results": []})

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
    with open_label_studio("http://studio", "token") as server:
        server.projects("streets")
        server.annotated(Project(1, "streets", ""), [1])
    assert waited == {"/api/projects/": 60, "/api/projects/1/export": 300}


GONE = {"status_code": 500, "detail": "Task matching query does not exist."}  # as 1.23.2 answers


@pytest.mark.parametrize("last", [(204, b""), (404, {"detail": "No Task matches the given query."})])
def test_a_task_that_another_push_removes_at_the_same_moment_is_as_good_as_removed(
    last: tuple[int, Any], no_waiting: None
) -> None:
    answers = iter([(500, {}, GONE), (last[0], {}, last[1])])
    with http_server(lambda *_: next(answers)) as url, open_label_studio(url, "token") as server:
        server.remove_task(7)
    assert next(answers, None) is None, "asked again"


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_what_a_server_fails_at_is_asked_again_unless_it_may_have_been_done(
    method: str, no_waiting: None
) -> None:
    asked = []

    def answer(method: str, *_: object) -> tuple[int, dict[str, str], Any]:
        asked.append(method)
        return 503, {}, {"detail": "too busy"}

    with http_server(answer) as url, open_label_studio(url, "token") as server:
        act = {
            "GET": lambda: server.projects("streets"),
            "DELETE": lambda: server.remove_task(7),
            "POST": lambda: server.create_project("streets", ""),
        }
        with pytest.raises(ReviewError, match="answered 503"):
            act[method]()
    assert asked == [method] * (1 if method == "POST" else 4)
