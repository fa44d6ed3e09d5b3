"""The flow that finds new buckets and folders, and tells the server about each once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Failed

from flows.events import has_arrived, send_discovered
from flows.no_sources import warn_of_none
from flows.run_log import library_log, without_secrets
from segpipe.errors import RunError, SegpipeError
from segpipe.printable import markdown_cells
from segpipe.redaction import redact
from segpipe.sources.announcements import announce_new, message_id
from segpipe.sources.event_queue import Notification, Queue
from segpipe.sources.sources_file import Problem, Source, SourcesFile, find_sources, holder_of, read_sources

MESSAGES_A_RUN = 1000


@flow(name="watch", flow_run_name="watch {sources}")
def watch(sources: str) -> dict[str, Any] | State:
    """Announce what is new: each new bucket or folder once, and sources that a queue says have new images.

    Args:
        sources: The sources file: its URL on any fsspec storage.

    Returns:
        The URLs found and those announced now.
    """
    try:
        with library_log(), without_secrets(), get_client(sync_client=True) as client:
            file = read_sources(sources)
            found, problems = find_sources(file)
            announced = list(_announce(client, file, found))
            announced += _announce_notified(client, file, problems)
    except (SegpipeError, httpx.HTTPError) as error:
        return Failed(message=redact(" ".join(str(error).split())))
    _publish(found, announced, problems, warn_of_none(sources, file))
    if problems:
        return Failed(message=_what_failed(problems))
    return {"found": [source.url for source in found], "announced": [source.url for source in announced]}


def _announce(client: SyncPrefectClient, file: SourcesFile, found: list[Source]) -> Iterator[Source]:
    if not found:
        return
    if file.state is None:
        raise RunError("the sources file has no state: give it the URL of a folder to note announcements in")
    new = announce_new(file.state, found, partial(has_arrived, client), partial(send_discovered, client))
    for source in new:
        get_run_logger().info("announced %s", redact(source.url))
        yield source


def _announce_notified(
    client: SyncPrefectClient, file: SourcesFile, problems: list[Problem]
) -> Iterator[Source]:
    """One message per source that the queue names, however many images are new there."""
    if file.queue is None:
        return
    try:
        queue = Queue(file.queue)
        received = list(queue.receive(MESSAGES_A_RUN))
        for source, ids in _by_source(file, received).items():
            send_discovered(client, source, message_id(source, ",".join(sorted(ids))))
            get_run_logger().info("new images in %s", redact(source.url))
            yield source
        for notification in received:
            queue.delete(notification)
    except SegpipeError as error:
        problems.append(Problem(redact(file.queue), str(error)))


def _by_source(file: SourcesFile, notifications: list[Notification]) -> dict[Source, set[str]]:
    """Ids of the notifications about each source; an object of no source is nobody's."""
    ids: dict[Source, set[str]] = defaultdict(set)
    for notification in notifications:
        for uri in notification.uris:
            if source := holder_of(uri, file):
                ids[source].add(notification.message_id)
    return ids


def _publish(
    found: list[Source], announced: list[Source], problems: list[Problem], more: list[dict[str, Any]]
) -> None:
    rows = [
        {"source": redact(source.url), "state": "announced" if source in announced else "known"}
        for source in found
    ]
    rows += [{"source": redact(problem.where), "state": redact(problem.message)} for problem in problems]
    create_table_artifact(
        [markdown_cells(row) for row in rows + more],
        key="watch-sources",
        description="What the patterns match, and what failed",
    )


def _what_failed(problems: list[Problem]) -> str:
    return redact("; ".join(f"{problem.where}: {problem.message}" for problem in problems))
