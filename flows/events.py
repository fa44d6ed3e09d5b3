"""Messages to the Prefect server that are known to have arrived: emit_event only queues them."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.filters import EventFilter, EventIDFilter
from prefect.events.schemas.events import Event, Resource

from segpipe.labeling.sources import Source
from segpipe.storage import redact

DISCOVERED = "segpipe.bucket.discovered"


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
    client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
