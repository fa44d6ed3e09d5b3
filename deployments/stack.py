"""`make up`, `make status`, `make down`: Prefect server, worker and, if asked, an S3 server on this machine.

Nothing here is for a cluster: the programs listen on loopback only, and one that dies stays dead until the
next `make up`, which starts what is missing and applies the deployments again. Whoever reaches the server's
API runs commands on the worker, so the server wants a login, which the stack's folder keeps.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx

from deployments import login, processes, settings
from deployments.processes import Program, log_file
from deployments.settings import HOSTS_VARIABLE, LOOPBACK
from segpipe.errors import RunError, SegpipeError
from segpipe.redaction import redact

ROOT = Path(__file__).resolve().parents[1]
POOL = "segpipe"
WORKER_LIMIT = 2
QUERY_SECONDS = 3  # 10 by default: how long a run waits at most until the worker sees it
HEARTBEAT_SECONDS = 30
START_SECONDS = 180.0  # 15 s as a rule, much more where other work keeps the machine busy
STOP_SECONDS = 20.0
DEFAULT_FOLDER = Path("stack")
PROGRAMS = ("worker", "server", "s3")  # in the order in which they are to stop
# What no program inherits; make puts what stands on its command line into the last three.
SECRETS = (
    *("DATABASE", "SEGPIPE_WEBHOOK_URL", "PREFECT_API_KEY"),
    *("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"),
    *("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"),
)
ERROR_LINE = re.compile(r"[\w.]+(?:Error|Exception)\w*: ")
LINES_OF_A_FAILURE = 100
EMPTY_SOURCES = """\
# What is labelled every night, and watched for new buckets. docs/operations.md says what goes in here.
"""
# A moto server takes any; unlike words of a path, since whatever equals a key is redacted in messages.
MOTO_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "MOTOACCESSKEYID00001",
    "AWS_SECRET_ACCESS_KEY": "moto-secret-access-key-00001",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Stack:
    """What `make up` was asked for; `database` is a SQLAlchemy URL with a password, None if not given."""

    folder: Path
    port: int
    s3_port: int
    with_s3: bool
    sources: str
    timezone: str
    label_studio: str
    silent_seconds: int
    settings: Mapping[str, str]
    database: str | None = field(repr=False)
    webhook_url: str = field(repr=False)

    @property
    def ui_url(self) -> str:
        """Address of Prefect's pages."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def s3_url(self) -> str:
        """Address of the S3 server."""
        return f"http://{LOOPBACK}:{self.s3_port}"

    @property
    def exports(self) -> dict[str, str]:
        """What a shell needs in its environment to talk to the stack, but for the login."""
        s3 = {"AWS_ENDPOINT_URL": self.s3_url, **MOTO_ENVIRONMENT} if self.with_s3 else {}
        return {"PREFECT_API_URL": f"{self.ui_url}/api", "SEGPIPE_SOURCES": self.sources, **s3}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all programs; the secrets are for those that need them."""
        return processes.environment_without(*SECRETS) | {
            **self.exports,
            "SEGPIPE_TIMEZONE": self.timezone,
            "SEGPIPE_LABEL_STUDIO": self.label_studio,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_PROFILES_PATH": str(self.folder / "prefect" / "profiles.toml"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def client_environment(self) -> dict[str, str]:
        """The environment of what asks the server; RunError for a login that is no secret."""
        return self.environment | {"PREFECT_API_AUTH_STRING": login.read(self.folder)}


def server(stack: Stack) -> Program:
    """The Prefect server."""
    own = {
        "PREFECT_UI_URL": stack.ui_url,
        "PREFECT_SERVER_UI_API_URL": f"{stack.ui_url}/api",
        "PREFECT_SERVER_API_AUTH_STRING": login.read(stack.folder),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": stack.ui_url,
        HOSTS_VARIABLE: LOOPBACK,
        # cleanup/weekly deletes flow runs; their logs and artifacts, and events, the server drops by itself.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,orphans",
        # By default what waits for an earlier event is lost with the server, and alarms with it.
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect.server.events.ordering.db",
    }
    if stack.database:
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.database
    factory = ("--app-dir", str(ROOT), "--factory", "deployments.prefect_server:application")
    command = _python("uvicorn", *factory, "--host", LOOPBACK, "--port", str(stack.port))
    return Program("server", command, stack.environment | own)


def worker(stack: Stack) -> Program:
    """The worker, which starts a process per flow run."""
    own = {
        "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }
    options = ("--pool", POOL, "--limit", str(WORKER_LIMIT), "--name", "local")
    return Program("worker", _python("prefect", "worker", "start", *options), stack.client_environment | own)


def s3(stack: Stack) -> Program:
    """An S3 server that keeps everything in memory, and knows no login."""
    own = {"MOTO_DISABLE_GLOBAL_CORS": "true"}
    command = _python("moto.server", "-H", LOOPBACK, "-p", str(stack.s3_port))
    return Program("s3", command, stack.environment | own)


def bring_up(stack: Stack, say: Callable[[str], None]) -> None:
    """Start what is missing, apply deployments and alarms; RunError when a port is taken or a start fails."""
    _refuse_changes(stack)
    _make_folder(stack.folder)
    settings.remember(stack.folder, stack.settings, stack.database)
    _make_sources(stack)
    if stack.with_s3:
        _start_and_wait(stack.folder, s3(stack), f"{stack.s3_url}/moto-api/", "S3_PORT", say)
    _start_server(stack, say)
    _refuse_another_login(stack)
    say(f"register  {_register(stack)}")
    _deploy(stack)
    say("deploy    all of deployments/prefect.yaml")
    if processes.pid_of(stack.folder, "worker") is None:
        processes.start(stack.folder, worker(stack))
    _wait_for_worker(stack)
    say(_running(stack.folder, "worker", f"pool {POOL}, {WORKER_LIMIT} runs at once"))


def bring_down(folder: Path, say: Callable[[str], None]) -> None:
    """Stop everything that runs; runs under way are marked as crashed and go on with the next."""
    for name in PROGRAMS:
        stopped = folder.is_dir() and processes.stop(folder, name, STOP_SECONDS)
        say(f"{name:<9} {'stopped' if stopped else 'was not running'}")


def _start_server(stack: Stack, say: Callable[[str], None]) -> None:
    try:
        _start_and_wait(stack.folder, server(stack), f"{stack.ui_url}/api/health", "PORT", say)
    except RunError as error:
        if not stack.database:
            raise
        said = str(error).replace(urlsplit(stack.database).password or stack.database, "***")
        raise RunError(f"{said}; is DATABASE right, and does its server run?") from None


def _refuse_another_login(stack: Stack) -> None:
    """A server that was running may be one without a login, or with one that is gone."""
    url, again = f"{stack.ui_url}/api/admin/version", f"run {_make_down(stack.folder)} first"
    if _status(url, None) != httpx.codes.UNAUTHORIZED:
        raise RunError(f"the server of {stack.folder} runs without a login, so anyone may use it: {again}")
    if _status(url, _credentials(stack)) == httpx.codes.UNAUTHORIZED:
        raise RunError(
            f"the server does not take the login of {login.login_file(stack.folder)}, which is newer than "
            f"the server: {again}"
        )


def _status(url: str, credentials: tuple[str, str] | None) -> int:
    try:
        return httpx.get(url, auth=credentials, timeout=30).status_code
    except httpx.HTTPError as error:
        raise RunError(f"{url}: {redact(str(error)) or type(error).__name__}; run make up again") from None


def _credentials(stack: Stack) -> tuple[str, str]:
    return login.as_pair(login.read(stack.folder))


def _start_and_wait(
    folder: Path, program: Program, url: str, port_variable: str, say: Callable[[str], None]
) -> None:
    if processes.pid_of(folder, program.name) is None:
        _refuse_taken_port(url, port_variable)
        processes.start(folder, program)
    _wait_until(lambda: _answers(url), folder, program.name)
    say(_running(folder, program.name, url.split("/api")[0].removesuffix("/moto-api/")))


def _running(folder: Path, name: str, where: str) -> str:
    return f"{name:<9} runs, {where}, process {processes.pid_of(folder, name)}"


def _refuse_taken_port(url: str, variable: str) -> None:
    port = httpx.URL(url).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one just closed counts as free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise RunError(
                f"port {port} is taken by another program: stop it, or choose another port, "
                f"for example make up {variable}={port + 1000}"  # type: ignore[operator]
            ) from None


def _make_folder(folder: Path) -> None:
    """Logs, database and login are for their owner alone; a folder that was there keeps its permissions."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        for name in ("logs", "prefect"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name).chmod(0o700)
        login.make(folder)
    except OSError as error:
        raise RunError(
            f"STACK={folder} cannot be made or written to ({error.strerror}): name another folder"
        ) from None


def _refuse_changes(stack: Stack) -> None:
    """A stack that runs keeps its ports and its database: a second set beside it would be no help."""
    before = settings.recall(stack.folder)
    running = [name for name in PROGRAMS if before and processes.pid_of(stack.folder, name)]
    if running and _addresses(before) != _addresses(stack.settings):
        shown = " ".join(f"{name}={value}" for name, value in _addresses(before).items() if value)
        raise RunError(
            f"the stack in {stack.folder} runs with {shown}: keep these, or run "
            f"{_make_down(stack.folder)} first"
        )
    _refuse_other_database(stack, before.get(settings.DATABASE_DIGEST, ""), "server" in running)


def _addresses(chosen: Mapping[str, str]) -> dict[str, str]:
    return {name: chosen[name] for name in ("PORT", "S3", "S3_PORT") if chosen["S3"] or name == "PORT"}


def _refuse_other_database(stack: Stack, before: str, runs: bool) -> None:
    """Never to take SQLite, or another database, without a word for the one that holds the runs."""
    given = stack.database is not None
    if given and runs and settings.digest(stack.folder, stack.database or "") != before:
        raise RunError(
            f"the server of {stack.folder} runs with another DATABASE: keep it, or run "
            f"{_make_down(stack.folder)} first"
        )
    if before and not given and not runs:
        raise RunError(
            f"the stack in {stack.folder} was started with a DATABASE, which is not kept: give it again, or "
            "DATABASE= for SQLite"
        )


def _make_down(folder: Path) -> str:
    """What stops the stack, as typed."""
    where = "" if folder == DEFAULT_FOLDER.resolve() else f" STACK={shlex.quote(str(folder))}"
    return f"make down{where}"


def _make_sources(stack: Stack) -> None:
    """A sources file to fill in, where none is named."""
    if stack.sources == str(_own_sources(stack.folder)):
        with suppress(FileExistsError), Path(stack.sources).open("x") as file:
            file.write(EMPTY_SOURCES)


def _own_sources(folder: Path) -> Path:
    return folder / "sources.toml"


def _deploy(stack: Stack) -> None:
    options = ("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    _run(_python("prefect", *options), stack.client_environment)


def _register(stack: Stack) -> str:
    own = {"SEGPIPE_WEBHOOK_URL": stack.webhook_url} if stack.webhook_url else {}
    command = _python("deployments.register", "--silent-seconds", str(stack.silent_seconds))
    return _run(command, stack.client_environment | own)


def _run(command: tuple[str, ...], environment: dict[str, str]) -> str:
    """What the program prints; RunError when it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr + done.stdout).split())[-500:]
        raise RunError(f"{' '.join(command[2:])} failed: {redact(said)}")
    return done.stdout.strip()


def _wait_for_worker(stack: Stack) -> None:
    url = f"{stack.ui_url}/api/work_pools/{POOL}"
    _wait_until(lambda: _is_ready(url, _credentials(stack)), stack.folder, "worker")


def _is_ready(url: str, credentials: tuple[str, str]) -> bool:
    with suppress(httpx.TransportError):
        return bool(httpx.get(url, auth=credentials, timeout=10).json().get("status") == "READY")
    return False


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=10).is_success
    return False


def _wait_until(reached: Callable[[], bool], folder: Path, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not reached():
        if processes.pid_of(folder, name) is None:
            raise RunError(f"the {name} stopped while it started: {_said_last(folder, name)}")
        if time.monotonic() > deadline:
            raise RunError(f"the {name} gave no answer in {START_SECONDS:.0f} s: {_said_last(folder, name)}")
        time.sleep(0.3)


def _said_last(folder: Path, name: str) -> str:
    log = log_file(folder, name)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # A traceback's last line says why; those after it only that something went wrong.
    reasons = [line for line in lines[-LINES_OF_A_FAILURE:] if ERROR_LINE.match(line)]
    return f"see {log}; it says: {redact((reasons or lines or ['nothing'])[-1])}"


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _how_to_go_on(stack: Stack) -> str:
    exports = "\n".join(f"  export {name}={value}" for name, value in stack.exports.items())
    s3_note = "\nThe S3 server keeps its buckets in memory: they are gone after make down." * stack.with_s3
    secret = login.login_file(stack.folder)
    return f"""
Pages    {stack.ui_url}
Login    {secret}: the pages ask for that line; who has it runs commands on the worker
Logs     {stack.folder / "logs"}
Sources  {stack.sources}
{s3_note}
In a shell of yours:
{exports}
  export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(secret))})"
  prefect deployment run label/on-bucket -p source=IMAGES -p output=LABELS -p model=MODEL
Stop with: {_make_down(stack.folder)}"""


def _asked_for(folder: Path) -> Stack:
    chosen = settings.choose(folder, os.environ)
    webhook_url = os.environ.get("SEGPIPE_WEBHOOK_URL", "")
    settings.check_webhook(webhook_url)
    return Stack(
        folder=folder,
        port=int(chosen["PORT"]),
        s3_port=int(chosen["S3_PORT"]),
        with_s3=chosen["S3"] == "moto",
        sources=chosen["SEGPIPE_SOURCES"] or str(_own_sources(folder)),
        timezone=chosen["SEGPIPE_TIMEZONE"],
        label_studio=chosen["SEGPIPE_LABEL_STUDIO"],
        silent_seconds=int(chosen["SILENT_SECONDS"]),
        settings=chosen,
        database=os.environ.get("DATABASE"),
        webhook_url=webhook_url,
    )


folder_option = click.option(
    "--folder",
    envvar="STACK",
    type=click.Path(path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where logs, login, the SQLite database and process ids are kept.",
)


@click.group()
def main() -> None:
    """The local stack: Prefect server, worker and, if asked, an S3 server."""


@main.command()
@folder_option
def up(folder: Path) -> None:
    """Start what does not run yet, and apply deployments and alarms; the settings are in the environment."""
    try:
        stack = _asked_for(folder.expanduser().resolve())
        bring_up(stack, click.echo)
    except SegpipeError as error:
        raise click.ClickException(redact(str(error))) from None
    click.echo(_how_to_go_on(stack))


@main.command()
@folder_option
def down(folder: Path) -> None:
    """Stop everything."""
    bring_down(folder.expanduser().resolve(), click.echo)


@main.command()
@folder_option
def status(folder: Path) -> None:
    """Say what runs; exit 1 when server or worker does not."""
    folder = folder.expanduser().resolve()
    pids = {name: processes.pid_of(folder, name) if folder.is_dir() else None for name in reversed(PROGRAMS)}
    for name, pid in pids.items():
        click.echo(f"{name:<9} {f'runs, process {pid}' if pid else 'does not run'}, {log_file(folder, name)}")
    if (secret := login.login_file(folder)).is_file():
        click.echo(f"login     {secret}")
    sys.exit(0 if pids["server"] and pids["worker"] else 1)


if __name__ == "__main__":
    main()
