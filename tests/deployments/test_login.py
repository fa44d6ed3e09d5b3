"""A login is drawn once, for its owner alone, and one that others may know is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from stat import S_IMODE

import pytest

from deployments import login
from segpipe.errors import RunError

ROOT = Path(__file__).resolve().parents[2]


def test_a_login_is_drawn_once_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        login.make(tmp_path)
    finally:
        os.umask(before)
    drawn = login.read(tmp_path)
    assert S_IMODE(login.login_file(tmp_path).stat().st_mode) == 0o600
    login.make(tmp_path)
    assert login.read(tmp_path) == drawn
    other = tmp_path / "other"
    other.mkdir()
    login.make(other)
    assert login.read(other) != drawn


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620])
def test_a_login_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    login.make(tmp_path)
    drawn = login.read(tmp_path)
    login.login_file(tmp_path).chmod(mode)
    with pytest.raises(RunError, match="read or written by others") as refused:
        login.read(tmp_path)
    assert drawn not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "\n", "no-colon", "user:", ":pass", "user:wörd", "user:two words", "a:b\nc:d"]
)
def test_what_is_no_login_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    login.make(tmp_path)
    login.login_file(tmp_path).write_text(text)
    with pytest.raises(RunError, match="holds no USER:PASSWORD"):
        login.read(tmp_path)


def test_a_login_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    login.login_file(tmp_path).mkdir()
    with pytest.raises(RunError, match=f"{login.FILE} cannot be read"):
        login.read(tmp_path)


def test_a_login_of_one_s_own_may_have_colons_in_its_password(tmp_path: Path) -> None:
    login.make(tmp_path)
    login.login_file(tmp_path).write_text("user:pass:word\n")
    assert login.as_pair(login.read(tmp_path)) == ("user", "pass:word")


def test_the_server_does_not_start_without_a_login() -> None:
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "deployments.prefect_server:application",
        "--port",
        "0",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "PREFECT_SERVER_API_AUTH_STRING is not set" in done.stderr
