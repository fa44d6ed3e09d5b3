"""moto's S3 server with one write at a time: `python atomic_moto.py HOST PORT`.

As it is, it looks whether an object exists and then writes it, in threads: of two that create an object only
if it is not there, as S3 promises, both may win.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

WRITES = ("PUT", "POST", "DELETE")


def main(host: str, port: int) -> None:
    """Serve until the process ends."""
    server, writing = DomainDispatcherApplication(create_backend_app), Lock()

    def one_write_at_a_time(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in WRITES:
            return server(environ, start_response)
        with writing:
            return server(environ, start_response)

    run_simple(host, port, one_write_at_a_time, threaded=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
