"""What a Prefect server must know beside the deployments: work pool, queue, crash detection and alarms.

    SEGPIPE_WEBHOOK_URL=https://... python -m deployments.register

It needs PREFECT_API_URL and, where the server wants a login, PREFECT_API_AUTH_STRING. Registering again
brings the automations up to date; the pool and the limit of its queue stay as they are.
"""

from __future__ import annotations

import os

import click
import httpx
from prefect.client.orchestration import get_client

from deployments.alarms import SILENT_SECONDS, WEBHOOK_VARIABLE, register_alarms, register_crash_detection
from deployments.pool import make_pool
from deployments.settings import LEAST_SILENT_SECONDS
from segpipe.doctor.server import refusal
from segpipe.errors import SegpipeError
from segpipe.redaction import redact


@click.command()
@click.option("--ui-url", help="Address of Prefect's pages, for the links.  [default: from PREFECT_API_URL]")
@click.option(
    "--silent-seconds",
    default=SILENT_SECONDS,
    show_default=True,
    type=click.IntRange(min=LEAST_SILENT_SECONDS),
    help="Seconds without a heartbeat after which a run counts as crashed.",
)
def main(ui_url: str | None, silent_seconds: int) -> None:
    """Make the work pool, and register the alarms that SEGPIPE_WEBHOOK_URL is to receive."""
    webhook_url, api_url = os.environ.get(WEBHOOK_VARIABLE, ""), os.environ.get("PREFECT_API_URL", "")
    if not api_url:
        raise click.ClickException(
            "PREFECT_API_URL is not set: set it to the Prefect server's, http://.../api"
        )
    try:
        with get_client(sync_client=True) as client:
            make_pool(client)
            register_crash_detection(client, silent_seconds)
            if webhook_url:
                register_alarms(client, webhook_url, ui_url or api_url.removesuffix("/api"))
    except httpx.HTTPStatusError as error:
        raise click.ClickException(refusal(error.response, api_url) or redact(str(error))) from None
    except (SegpipeError, httpx.HTTPError) as error:
        raise click.ClickException(redact(str(error))) from None
    click.echo(
        f"alarms call {WEBHOOK_VARIABLE}"
        if webhook_url
        else f"alarms stay as they were, none if never registered: set {WEBHOOK_VARIABLE}"
    )


if __name__ == "__main__":
    main()
