"""The doctor against real storage, a real model, servers that are down, wrong or late."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from random_model import write_random_model
from s3_proxy import Exchange, S3Proxy

from segpipe import storage
from segpipe.cli import run
from segpipe.config import DoctorSettings
from segpipe.doctor import machine
from segpipe.doctor.examination import examine
from segpipe.doctor.findings import Finding
from segpipe.doctor.server import DEPLOYMENTS


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def findings(**values: object) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(DoctorSettings(**values))}  # type: ignore[arg-type]


def statuses(found: dict[str, Finding], *checks: str) -> list[str]:
    return [found[check].status for check in checks]


def test_a_whole_set_up_is_found_well_and_nothing_is_left_behind(
    storage_root: str, encoded: Callable[..., bytes], tmp_path: Path
) -> None:
    source, output = storage.join(storage_root, "raw"), storage.join(storage_root, "labels")
    storage.put(storage.join(source, "a.png"), encoded(np.zeros((4, 4, 3), np.uint8)))
    model = write_random_model(str(tmp_path / "model"))
    found = findings(source=source, output=output, model=model)
    assert statuses(found, "versions", "device", "source", "output", "model") == ["ok"] * 5
    assert found["policy"].status == "warn"
    assert "segpipe calibrate" in str(found["policy"].remedy)
    left = {item.key for item in storage.list_objects(storage_root)}
    assert {key for key in left if not key.startswith("model/")} == {"raw/a.png"}


def test_a_folder_that_is_not_there_yet_is_not_there_afterwards(tmp_path: Path) -> None:
    assert findings(output=str(tmp_path / "new" / "labels"))["output"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_given_is_skipped_and_says_how_to_give_it() -> None:
    found = findings()
    skipped = ("source", "output", "sources file", "model", "policy", "prefect server", "work pool")
    assert statuses(found, *skipped) == ["skip"] * len(skipped)
    assert statuses(found, "versions", "device", "disk") == ["ok"] * 3


def test_each_failure_is_one_line_and_hides_no_other(tmp_path: Path, s3_server: str) -> None:
    model = write_random_model(str(tmp_path / "model"))
    with (tmp_path / "model" / "generator.safetensors").open("ab") as file:
        file.write(b"changed")
    (tmp_path / "file").write_text("no folder")
    found = findings(source="s3://absent-bucket/raw", output=str(tmp_path / "file"), model=model)
    assert statuses(found, "source", "output", "model", "policy") == ["FAIL"] * 4
    assert "absent-bucket does not exist" in found["source"].found
    assert "its files were changed" in found["model"].found
    assert all("\n" not in finding.line() for finding in found.values())


def test_every_deployment_that_make_up_applies_is_looked_for() -> None:
    applied = Path(__file__).resolve().parents[2] / "deployments" / "prefect.yaml"
    assert {one["name"] for one in yaml.safe_load(applied.read_text())["deployments"]} == DEPLOYMENTS


def source(pattern: str, output: str, model: str) -> str:
    return f"[[source]]\npattern = '{pattern}'\noutput = '{output}'\nmodel = '{model}'\n"


def test_what_the_sources_file_names_is_looked_at(tmp_path: Path, s3_server: str) -> None:
    model = write_random_model(str(tmp_path / "model"))
    (tmp_path / "raw" / "a").mkdir(parents=True)
    (tmp_path / "raw" / "a" / "1.png").write_bytes(b"image")
    file, raw = tmp_path / "sources.toml", f"{tmp_path}/raw/*"

    file.write_text(source(raw, str(tmp_path / "labels"), model))
    found = findings(sources=str(file))
    assert statuses(found, "sources file", "their models", "their outputs") == ["ok"] * 3

    file.write_text(source(raw, "/labels", model) + source(f"{tmp_path}/raw/x*", "/labels-2", model))
    found = findings(sources=str(file))
    assert found["sources file"].status == "warn"
    assert f"{tmp_path}/raw/x*" in found["sources file"].found

    file.write_text(source(raw, "foo://x", "/no/model") + source("s3://absent-bucket/raw", "/labels", model))
    found = findings(sources=str(file))
    assert statuses(found, "sources file", "their models", "their outputs") == ["FAIL"] * 3
    assert "absent-bucket does not exist" in found["sources file"].found
    assert "/no/model" in found["their models"].found
    assert "unknown scheme 'foo'" in found["their outputs"].found


def test_a_storage_that_overwrites_is_found_out(
    s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget_the_condition(exchange: Exchange) -> None:
        for name in [name for name in exchange.request.headers if name.lower() == "if-none-match"]:
            del exchange.request.headers[name]
        exchange.send(*exchange.forward())

    proxy = S3Proxy(s3_server)
    try:
        proxy.decide = lambda request: forget_the_condition
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        found = findings(output=f"s3://{s3_bucket}/labels")["output"]
    finally:
        proxy.close()
    assert found.status == "FAIL"
    assert "overwrites where it is told to create only" in found.found
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    assert next(storage.list_objects(f"s3://{s3_bucket}"), None) is None


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + 100, usegmt=True)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "2")
    handler.end_headers()
    handler.wfile.write(b'""')


def test_a_clock_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(say_nothing) as url:
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        found = findings()["clock"]
    assert found.status == "FAIL"
    assert found.found in {f"{seconds} s behind the Prefect server's" for seconds in (99, 100)}


@pytest.mark.parametrize(
    ("variable", "shown"),
    [
        ("PREFECT_API_AUTH_STRING", "Basic YWRtaW46c3dvcmRmaXNo"),
        ("PREFECT_API_KEY", "Bearer admin:swordfish"),
    ],
)
def test_a_server_with_a_login_is_shown_it(
    variable: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_in(handler: BaseHTTPRequestHandler) -> None:
        welcome = handler.headers["Authorization"] == shown
        content = f'"{version("prefect")}"'.encode() if welcome else b"Unauthorized"
        handler.send_response(200 if welcome else 401)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with server(let_in) as url:
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        refused = findings()["prefect server"]
        monkeypatch.setenv(variable, "admin:swordfish")
        welcome = findings()["prefect server"]
    assert (refused.status, welcome.status) == ("FAIL", "ok")
    assert "the server wants a login: set PREFECT_API_AUTH_STRING" in refused.found


def test_a_server_that_wants_a_token_of_every_post_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        address, _, query = handler.path.partition("?client=")
        if address.endswith("/csrf-token"):
            given[query] = f"token-{len(given)}"
            reply(handler, 200, f'{{"token": "{given[query]}"}}')
        elif address.endswith("/deployments/filter"):
            shown = handler.headers["Prefect-Csrf-Token"], handler.headers["Prefect-Csrf-Client"]
            fits = shown[0] is not None and given.get(shown[1]) == shown[0]
            reply(handler, 200 if fits else 403, "[]")
        else:
            reply(handler, 404, "{}")

    with server(answer) as url:
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        found = findings()["deployments"]
    assert found.found.startswith("missing: buckets")


def reply(handler: BaseHTTPRequestHandler, status: int, content: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content.encode())


def test_a_server_that_is_down_is_named_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(say_nothing) as url:
        pass
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    found = findings()
    assert statuses(found, "prefect server", "work pool", "deployments") == ["FAIL"] * 3
    assert f"{url}/api/admin/version" in found["prefect server"].found


def test_a_server_that_never_answers_holds_a_check_only_so_long(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        released.wait(60)
        say_nothing(handler)

    with server(wait) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        started = time.monotonic()
        found = findings(source=f"s3://{s3_bucket}", seconds=1.0)["source"]
        assert time.monotonic() - started < 30
        released.set()
    assert (found.status, found.found) == ("FAIL", "no answer in 1 s")


def test_a_package_out_of_range_is_named_with_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine, "requires", lambda _: ["numpy<1", "no-such-package>=2", "moto>99; extra == 'dev'"]
    )
    found = machine.check_versions()
    assert found.status == "FAIL"
    assert found.found == f"numpy {np.__version__} is not <1, no-such-package is missing"


def test_what_an_adopted_model_lacks_here_is_said_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=2; extra == 'transformers'",
        "no-such-package>=2; extra == 'onnx'",
        "absent; extra == 'dev'",
    ]
    monkeypatch.setattr(machine, "requires", lambda _: wanted)
    found = machine.check_extras()
    assert (found.status, found.found) == ("skip", "no-such-package is missing")
    assert "pip install 'segpipe[onnx]'" in str(found.remedy)
    monkeypatch.setattr(machine, "requires", lambda _: wanted[:1])
    assert machine.check_extras().status == "ok"


def test_a_full_disk_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert machine.check_disk(str(tmp_path / "not" / "yet")).status == "warn"


def test_the_command_exits_1_when_a_check_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--output", str(tmp_path)]) == 0
    assert run(["doctor", "--source", str(tmp_path / "absent")]) == 1
    out = capsys.readouterr().out
    assert f"FAIL  source             {tmp_path / 'absent'} does not exist" in out
