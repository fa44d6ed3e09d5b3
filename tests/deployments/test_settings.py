"""What a stack is started with: given, remembered, refused; and what is refused before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import processes, settings
from deployments.processes import Program, pid_of
from segpipe.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "postgresql+asyncpg://prefect:pass-word-1@localhost/prefect"


def up(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """`make up` of that folder with only these settings."""
    inherited = {n: v for n, v in os.environ.items() if n not in {*settings.DEFAULTS, "DATABASE", "STACK"}}
    command = [sys.executable, "-m", "deployments.stack", "up", "--folder", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | given, capture_output=True, text=True, check=False
    )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """The folder of a stack that was started on PostgreSQL, with a program in the server's place."""
    settings.remember(tmp_path, settings.choose(tmp_path, {"PORT": "4299"}), DATABASE)
    sleep = (sys.executable, "-c", "import time; time.sleep(600)")
    processes.start(tmp_path, Program("server", sleep, dict(os.environ)))
    yield tmp_path
    processes.stop(tmp_path, "server", 5)


def test_what_is_not_given_is_what_it_was_and_an_empty_value_is_the_default(tmp_path: Path) -> None:
    first = {
        "SEGPIPE_SOURCES": "s3://a/sources.toml",
        "SEGPIPE_TIMEZONE": "Europe/Berlin",
        "SEGPIPE_LABEL_STUDIO": "http://studio:8080",
        "SILENT_SECONDS": "40",
        "PORT": "4300",
    }
    settings.remember(tmp_path, settings.choose(tmp_path, first), "")
    assert settings.choose(tmp_path, {}).items() >= first.items()
    changed = settings.choose(tmp_path, {"SEGPIPE_TIMEZONE": "", "SILENT_SECONDS": "50"})
    assert (changed["SEGPIPE_TIMEZONE"], changed["SILENT_SECONDS"]) == ("UTC", "50")
    assert changed["SEGPIPE_SOURCES"] == "s3://a/sources.toml"


def test_no_secret_is_remembered(tmp_path: Path) -> None:
    chosen = settings.choose(tmp_path, {"SEGPIPE_LABEL_STUDIO": "http://me:pass-word-2@studio:8080"})
    settings.remember(tmp_path, chosen, DATABASE)
    assert "pass-word" not in (tmp_path / settings.FILE).read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"PORT": "99999"}, "PORT=99999"),
        ({"PORT": "x"}, "PORT=x"),
        ({"S3_PORT": "0"}, "S3_PORT=0"),
        ({"S3": "moto", "PORT": "4321", "S3_PORT": "4321"}, "PORT and S3_PORT are both 4321"),
        ({"S3": "minio"}, "S3=minio is unknown"),
        ({"SEGPIPE_TIMEZONE": "Europe/Bärlin"}, "SEGPIPE_TIMEZONE=Europe/Bärlin is no time zone"),
        ({"SILENT_SECONDS": "9"}, "SILENT_SECONDS=9 cannot be: give a whole number from 10"),
        ({"SEGPIPE_WEBHOOK_URL": "ftp://hook"}, "SEGPIPE_WEBHOOK_URL is no http:// or https:// address"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_before_anything_is_made(
    given: dict[str, str], said: str, tmp_path: Path
) -> None:
    done = up(tmp_path / "stack", **given)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr
    assert not (tmp_path / "stack").exists()


@pytest.mark.parametrize("folder", ["/proc/x", __file__])
def test_a_folder_that_cannot_be_made_is_one_line(folder: str) -> None:
    done = up(Path(folder))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"STACK={folder} cannot be made" in done.stderr


def test_a_stack_that_runs_refuses_another_database_or_port_and_says_how_to_stop_it(running: Path) -> None:
    for given in ({"DATABASE": DATABASE + "2"}, {"DATABASE": ""}, {"PORT": "4298"}):
        done = up(running, **given)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"make down STACK={running} first" in done.stderr
        assert "pass-word" not in done.stderr
    assert pid_of(running, "server") is not None


def test_a_database_that_is_not_given_again_is_not_taken_for_sqlite(tmp_path: Path) -> None:
    settings.remember(tmp_path, settings.choose(tmp_path, {}), DATABASE)
    settings.remember(tmp_path, settings.choose(tmp_path, {}), None)  # a second make up without it
    done = up(tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "give it again, or DATABASE= for SQLite" in done.stderr


def test_a_webhook_may_be_left_out() -> None:
    settings.check_webhook("")
    with pytest.raises(RunError):
        settings.check_webhook("hook")
