"""Masks to people: what waits for a decision becomes tasks of a Label Studio project, each once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from segpipe.config import PushSettings, QueueSettings
from segpipe.errors import ReviewError
from segpipe.manifests.store import classes_of
from segpipe.progress import track
from segpipe.redaction import redact
from segpipe.review.drafts import ITEM_ID, draft_task, why_not_shown
from segpipe.review.label_config import label_config, require_labels
from segpipe.review.label_studio import LabelStudio, Project
from segpipe.review.queue import QueueItem, make_queue

logger = logging.getLogger(__name__)

SENDINGS = 3  # of drafts that a busy server drops
TASKS_PER_REQUEST = 25  # four regions of two megapixels are 260 kB; the server takes 250 MB


@dataclass(frozen=True)
class PushSummary:
    """What the project had, got and what still waits for a place in it; project_url is for people.

    left_out: Label Studio cannot show the image; each is named in the log and stays in the queue.
    """

    project_url: str
    pushed: int
    already_there: int
    duplicates_removed: int
    left_out: int
    waiting: int


def push(output: str, settings: PushSettings, chosen: QueueSettings, server: LabelStudio) -> PushSummary:
    """Make what the queue of OUTPUT gives into tasks of the project, those that are there left alone.

    All drafts are made, and so checked, before the first is sent. A push that was killed is finished by the
    next one, and a task that lost its draft in the server is sent again. Raises ReviewError,
    StorageError, NotFoundError.
    """
    queue = make_queue(output, chosen)
    classes = classes_of(output)
    project = _project(server, settings.project, classes)
    _remove_bare(server, project)
    removed = _remove_duplicates(server, project)
    there = {task["data"].get(ITEM_ID) for task in server.tasks(project)}
    shown = list(_shown(queue.items))
    new = [item for item in shown if item.item_id not in there]
    tasks = _drafts(new, classes, with_score=not settings.hide_scores)
    _connect_buckets(server, project, (item.image_uri for item in new), settings)
    for start in range(0, len(tasks), TASKS_PER_REQUEST):
        _send(server, project, tasks[start : start + TASKS_PER_REQUEST])
    removed += _remove_duplicates(server, project)
    return PushSummary(
        f"{server.server}/projects/{project.id}/data",
        len(new),
        len(shown) - len(new),
        removed,
        len(queue.items) - len(shown),
        queue.waiting - len(queue.items),
    )


def _project(server: LabelStudio, title: str, classes: Sequence[str]) -> Project:
    project = next(iter(server.projects(title)), None) or _new_project(server, title, classes)
    require_labels(project.label_config, classes, title)
    return project


def _new_project(server: LabelStudio, title: str, classes: Sequence[str]) -> Project:
    """Two pushes at once make two of one title: the oldest is the project, the younger one goes again."""
    made = server.create_project(title, label_config(classes))
    oldest = min([made, *server.projects(title)], key=lambda one: one.id)
    if oldest != made and not any(server.tasks(made)):
        server.remove_project(made)
    return oldest


def _shown(items: Iterable[QueueItem]) -> Iterator[QueueItem]:
    for item in items:
        if reason := why_not_shown(item.image_uri):
            logger.warning("%s is left out: %s", redact(item.image_uri), reason)
        else:
            yield item


def _drafts(items: Sequence[QueueItem], classes: Sequence[str], *, with_score: bool) -> list[dict[str, Any]]:
    tasks = []
    with track(len(items), "drafts", "masks") as done:
        for item in items:
            tasks.append(draft_task(item, classes, with_score=with_score))
            done.advance()
    return tasks


def _send(server: LabelStudio, project: Project, tasks: Sequence[dict[str, Any]]) -> None:
    for _ in range(SENDINGS):
        if server.add_tasks(project, tasks):
            return
        _remove_bare(server, project)
    raise ReviewError(
        f"Label Studio stored {len(tasks)} tasks without their drafts {SENDINGS} times: "
        "push again when it is less busy"
    )


def _remove_bare(server: LabelStudio, project: Project) -> None:
    """Remove what opens with an empty canvas: submitted untouched it would be taken for a rejection."""
    bare = bare_tasks(server.tasks(project))
    _remove(server, bare, "that Label Studio had stored without their drafts")


def bare_tasks(tasks: Iterable[dict[str, Any]]) -> Iterator[int]:
    """The unanswered tasks of ours that have no draft."""
    for task in tasks:
        if task["data"].get(ITEM_ID) and not is_answered(task) and not task["total_predictions"]:
            yield task["id"]


def _remove_duplicates(server: LabelStudio, project: Project) -> int:
    """Of tasks for one item (two pushes at once make several) leave those with answers, or the first."""
    return _remove(server, spare_tasks(server.tasks(project)), "that another push had also made")


def _remove(server: LabelStudio, task_ids: Iterable[int], which: str) -> int:
    removed = list(task_ids)
    for task_id in removed:
        server.remove_task(task_id)
    if removed:
        logger.warning("removed %d tasks %s", len(removed), which)
    return len(removed)


def spare_tasks(tasks: Iterable[dict[str, Any]]) -> Iterator[int]:
    """The unanswered tasks whose item has an answered or an earlier one."""
    by_item: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        if name := task["data"].get(ITEM_ID):
            by_item.setdefault(name, []).append(task)
    for same in by_item.values():
        kept = [task for task in same if is_answered(task)] or [min(same, key=lambda task: task["id"])]
        yield from (task["id"] for task in same if task not in kept)


def is_answered(task: dict[str, Any]) -> bool:
    """Whether anybody has submitted or skipped it."""
    return bool(task.get("total_annotations") or task.get("cancelled_annotations"))


def _connect_buckets(
    server: LabelStudio, project: Project, image_uris: Iterable[str], settings: PushSettings
) -> None:
    needed = {urlsplit(uri).netloc for uri in image_uris if uri.startswith("s3://")}
    connected = {storage["bucket"] for storage in server.storages(project)} if needed else set()
    for bucket in sorted(needed - connected):
        fields = bucket_fields(bucket, settings, os.environ)
        try:
            server.connect_bucket(project, fields)
        except ReviewError as error:
            raise ReviewError(
                f"{error}; give Label Studio itself access to s3://{bucket} (AWS_* in its environment)"
            ) from error


def bucket_fields(bucket: str, settings: PushSettings, environment: Mapping[str, str]) -> dict[str, Any]:
    """How Label Studio reaches the bucket: by its own credentials, never by ours."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    fields = {
        "title": bucket,
        "bucket": bucket,
        "presign": settings.storage == "presigned",
        "presign_ttl": settings.link_minutes,
        "use_blob_urls": True,
    }
    return fields | ({"s3_endpoint": endpoint} if endpoint else {})
