"""Messages to the Prefect server that are known to have arrived: emit_event only queues them."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.filters import EventFilter, EventIDFilter
from prefect.events.schemas.events import Event, Resource

from segpipe.labeling.totals import RunSummary
from segpipe.redaction import redact
from segpipe.sources.sources_file import Source

DISCOVERED = "segpipe.bucket.discovered"
DRIFTED = "segpipe.run.drifted"
_NAMESPACE = UUID("4f0b8d7e-93a5-4a0e-8f4e-52c1d3b7a902")


def has_arrived(client: SyncPrefectClient, event_id: UUID) -> bool:
    """Whether the server has an event of this id; raises httpx.HTTPError."""
    return bool(client.read_events(EventFilter(id=EventIDFilter(id=[event_id])), limit=1).events)


def send_discovered(client: SyncPrefectClient, source: Source, event_id: UUID) -> None:
    """Tell the server that there is something to label; label/on-bucket is started by it.

    Raises httpx.HTTPError when the server did not take it.
    """
    event = Event(
        id=event_id,
        occurred=datetime.now(UTC),
        event=DISCOVERED,
        resource=Resource(
            {
                "prefect.resource.id": f"segpipe.source.{source.digest}",
                "prefect.resource.name": redact(source.url),
            }
        ),
        payload={
            "source": source.url,
            "output": source.output,
            "model": source.model,
            "settings": source.settings.model_dump(mode="json", exclude_defaults=True),
        },
    )
    _send(client, event)


def send_drifted(client: SyncPrefectClient, flow_run_id: str, flow_run_name: str, run: RunSummary) -> None:
    """Tell the server that a run's scores have drifted and all its masks went to review.

    Sent again, it is the same event. Raises httpx.HTTPError when the server did not take it.
    """
    event = Event(
        id=uuid5(_NAMESPACE, run.run_id),
        occurred=datetime.now(UTC),
        event=DRIFTED,
        resource=Resource(
            {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.name": flow_run_name}
        ),
        payload={"run_id": run.run_id, "source": redact(run.source), "output": redact(run.output)},
    )
    _send(client, event)


def _send(client: SyncPrefectClient, event: Event) -> None:
    client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
