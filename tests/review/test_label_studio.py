"""Wrong addresses: each is one line that names the address, the reason and the remedy."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_studio import http_server

from segpipe.cli import run
from segpipe.review.label_studio import Project, open_label_studio

PERSONAL = "a.b.c"  # the form of a personal access token, with which another request comes first


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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
