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
from segpipe.review.drafts import draft_task, why_not_shown
from segpipe.review.label_config import label_config, require_labels
from segpipe.review.label_studio import LabelStudio, Project, RefusedError, in_one_line
from segpipe.review.model_classes import classes_by_model
from segpipe.review.queue import take_queue
from segpipe.review.queue_item import QueueItem
from segpipe.review.tasks import IMAGE_URI, ListedTask, listed_tasks

logger = logging.getLogger(__name__)

SENDINGS = 3  # of drafts that a busy server drops
TASKS_PER_REQUEST = 25  # four regions of two megapixels are 260 kB; the server takes 250 MB


@dataclass(frozen=True)
class PushSummary:
    """What the project had, got and what still waits for a place in it; project_url is for people.

    left_out: so many cannot be shown in Label Studio, as it is with one whose mask cannot be read; not_sent
    says why, by image. They stay in the queue.
    """

    project_url: str
    pushed: int
    already_there: int
    duplicates_removed: int
    left_out: int
    waiting: int
    not_sent: dict[str, str]


def push(output: str, settings: PushSettings, chosen: QueueSettings, server: LabelStudio) -> PushSummary:
    """Make what the queue of OUTPUT gives into tasks of the project, those that are there left alone.

    A mask that cannot be sent is left out and named. A push that was killed is finished by the next one, and
    a task that lost its draft in the server is sent again. Raises ReviewError, StorageError, NotFoundError.
    """
    queue = take_queue(output, chosen)
    classes = classes_of(output)
    project = _project(server, settings.project, classes)
    _remove_bare(server, project)
    removed = _remove_duplicates(server, project)
    there = {task.item for task in listed_tasks(server.tasks(project))}
    not_sent = _not_shown(output, queue.items, classes)
    shown = [item for item in queue.items if item.image_uri not in not_sent]
    new = [item for item in shown if item.item_id not in there]
    tasks, unusable = _drafts(new, classes, with_score=not settings.hide_scores)
    _connect_buckets(server, project, (item.image_uri for item in new), settings)
    refused = _send_all(server, project, tasks)
    not_sent |= unusable | refused
    for image_uri, reason in not_sent.items():
        logger.warning("%s is left out: %s", in_one_line(redact(image_uri)), in_one_line(reason))
    return PushSummary(
        project_url=f"{server.server}/projects/{project.id}/data",
        pushed=len(tasks) - len(refused),
        already_there=len(shown) - len(new),
        duplicates_removed=removed + _remove_duplicates(server, project),
        left_out=len(not_sent),
        waiting=queue.waiting - len(queue.items),
        not_sent=not_sent,
    )


def _project(server: LabelStudio, title: str, classes: Sequence[str]) -> Project:
    project = next(iter(server.projects(title)), None) or _new_project(server, title, classes)
    require_labels(project.label_config, classes, title)
    return project


def _new_project(server: LabelStudio, title: str, classes: Sequence[str]) -> Project:
    """Two pushes at once make two of one title: the oldest is the project, the younger one goes again."""
    made = server.create_project(title, label_config(classes))
    oldest = min([made, *server.projects(title)], key=lambda one: one.id)
    if oldest != made and not list(server.tasks(made)):
        server.remove_project(made)
    return oldest


def _not_shown(output: str, items: Sequence[QueueItem], classes: Sequence[str]) -> dict[str, str]:
    """Why the project cannot show an image, or its mask, by image."""
    of_models = classes_by_model(output, (item.model_id for item in items))
    found = {}
    for item in items:
        known = of_models.get(item.model_id, classes)
        if reason := why_not_shown(item.image_uri):
            found[item.image_uri] = reason
        elif tuple(known) != tuple(classes):
            found[item.image_uri] = f"its model had the classes {', '.join(known)}: label the image again"
    return found


def _drafts(
    items: Sequence[QueueItem], classes: Sequence[str], *, with_score: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The tasks, and why there is none, by image."""
    tasks, unusable = [], {}
    with track(len(items), "drafts", "masks") as done:
        for item in items:
            try:
                tasks.append(draft_task(item, classes, with_score=with_score))
            except ReviewError as error:
                unusable[item.image_uri] = str(error)
            done.advance()
    return tasks, unusable


def _send_all(server: LabelStudio, project: Project, tasks: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Send the tasks; gives why the server takes one for wrong, by image."""
    refused: dict[str, str] = {}
    for start in range(0, len(tasks), TASKS_PER_REQUEST):
        refused |= _send_taken(server, project, tasks[start : start + TASKS_PER_REQUEST])
    return refused


def _send_taken(server: LabelStudio, project: Project, tasks: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One task that the server refuses keeps all of its request from being stored: so by halves."""
    try:
        _send(server, project, tasks)
    except RefusedError as error:
        if len(tasks) == 1:
            return {tasks[0]["data"][IMAGE_URI]: str(error)}
        middle = len(tasks) // 2
        first = _send_taken(server, project, tasks[:middle])
        return first | _send_taken(server, project, tasks[middle:])
    return {}


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
    bare = bare_tasks(listed_tasks(server.tasks(project)))
    _remove(server, bare, "that Label Studio had stored without their drafts")


def bare_tasks(tasks: Iterable[ListedTask]) -> Iterator[int]:
    """The unanswered tasks of ours that have no draft and are to have one."""
    return (
        task.number
        for task in tasks
        if task.item and not (task.is_answered or task.has_draft or task.from_scratch)
    )


def _remove_duplicates(server: LabelStudio, project: Project) -> int:
    """Of tasks for one item (two pushes at once make several) leave those with answers, or the first."""
    spare = spare_tasks(listed_tasks(server.tasks(project)))
    return _remove(server, spare, "that another push had also made")


def _remove(server: LabelStudio, task_ids: Iterable[int], which: str) -> int:
    removed = list(task_ids)
    for task_id in removed:
        server.remove_task(task_id)
    if removed:
        logger.warning("removed %d tasks %s", len(removed), which)
    return len(removed)


def spare_tasks(tasks: Iterable[ListedTask]) -> Iterator[int]:
    """The unanswered tasks whose item has an answered or an earlier one."""
    by_item: dict[str, list[ListedTask]] = {}
    for task in tasks:
        if task.item:
            by_item.setdefault(task.item, []).append(task)
    for same in by_item.values():
        kept = [task for task in same if task.is_answered] or [min(same, key=lambda task: task.number)]
        yield from (task.number for task in same if task not in kept)


def _connect_buckets(
    server: LabelStudio, project: Project, image_uris: Iterable[str], settings: PushSettings
) -> None:
    needed = {urlsplit(uri).netloc for uri in image_uris if uri.startswith("s3://")}
    connected = server.buckets(project) if needed else set()
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
