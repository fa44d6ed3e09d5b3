"""The Prefect server that answers only who knows its login, and only under its own names.

    PREFECT_SERVER_API_AUTH_STRING=user:password SEGPIPE_SERVER_HOSTS=127.0.0.1 \\
        python -m uvicorn --factory deployments.prefect_server:application --host 127.0.0.1 --port 4200

`prefect server start` serves the same application under any name. A page whose name was made to mean this
machine (DNS rebinding) is of the server's own origin to a browser, and no rule about origins holds it back.
"""

from __future__ import annotations

import os
import sys

from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.middleware.trustedhost import TrustedHostMiddleware

from deployments.settings import HOSTS_VARIABLE, LOOPBACK


def application() -> TrustedHostMiddleware:
    """Prefect's API and pages; ends the process where no login is set."""
    if not get_current_settings().server.api.auth_string:
        sys.exit(
            "PREFECT_SERVER_API_AUTH_STRING is not set: give a USER:PASSWORD, "
            "since whoever reaches the API runs commands on the workers"
        )
    # Not Prefect's own middleware: its services ask the application itself, under a name of their own.
    return TrustedHostMiddleware(create_app(final=True), hosts(), www_redirect=False)


def hosts() -> list[str]:
    """The names that a request may ask for."""
    given = os.environ.get(HOSTS_VARIABLE) or LOOPBACK
    return [name.strip() for name in given.split(",") if name.strip()]
