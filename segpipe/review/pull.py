"""Decisions from people: the annotations of a Label Studio project become reviews of OUTPUT, each once."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.errors import ReviewError
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.query import query
from segpipe.manifests.reviews import Review, append_reviews, item_id, known_review_ids
from segpipe.manifests.store import classes_of
from segpipe.metrics import image_iou
from segpipe.progress import track
from segpipe.redaction import redact
from segpipe.review.decisions import (
    IGNORED,
    Drawing,
    decided_at,
    drawing,
    minutes_spent,
    refusal,
    review_id,
)
from segpipe.review.drafts import ITEM_ID, read_mask
from segpipe.review.label_studio import LabelStudio, Project
from segpipe.review.push import is_answered

logger = logging.getLogger(__name__)

TASKS_PER_EXPORT = 50
MASKS = "reviews/masks"

_ITEMS = """
    SELECT image_uri, image_etag, model_id, mask_uri, mask_sha256, audit, inclusion_probability
    FROM labels WHERE mask_sha256 IS NOT NULL AND image_uri IN ($uris)
    ORDER BY labeled_at"""

_NO_MASK: dict[str, Any] = {
    "final_mask_uri": None,
    "final_mask_sha256": None,
    "draft_iou": None,
    "overlap_pixels": 0,
}


@dataclass(frozen=True)
class PullSummary:
    """How many new decisions of each kind came; known: pulled before; foreign: of another OUTPUT or no item.

    refused: annotations that say nothing usable, each named in the log; overlap_pixels: claimed by several
    classes.
    """

    accepted: int
    corrected: int
    rejected: int
    skipped: int
    known: int
    foreign: int
    refused: int
    overlap_pixels: int


@dataclass(frozen=True)
class _Answer:
    """One annotation of one task."""

    item: str
    image_uri: str
    annotation: dict[str, Any]
    origin: str
    reviewer: str | None

    @property
    def review_id(self) -> str:
        return review_id(self.item, self.annotation)


def pull(output: str, project_title: str, server: LabelStudio) -> PullSummary:
    """Append what people have decided in the project since the last pull to the reviews of OUTPUT.

    Where several projects have this title (two first pushes at once), all of them are read. A decision is its
    annotation as it was last changed: a later change is a later decision. Corrected masks are written before
    their reviews. Killed at any moment, the next pull adds what is missing. Raises ReviewError, StorageError,
    NotFoundError.
    """
    output = storage.normalise(output)
    classes = classes_of(output)
    projects = server.projects(project_title)
    if not projects:
        raise ReviewError(f"there is no project {project_title!r} on {redact(server.server)}: push first")
    people, counted = server.people(), Counter[str]()
    for project in projects:
        for tasks in _answered(server, project):
            counted += _pull_tasks(output, list(_answers(tasks, server, people)), classes)
    return PullSummary(**{name: counted[name] for name in PullSummary.__dataclass_fields__})


def _answered(server: LabelStudio, project: Project) -> Iterator[list[dict[str, Any]]]:
    """The tasks with answers, some at a time."""
    answered = [task["id"] for task in server.tasks(project) if is_answered(task)]
    with track(len(answered), "decisions", "tasks") as done:
        for start in range(0, len(answered), TASKS_PER_EXPORT):
            ids = answered[start : start + TASKS_PER_EXPORT]
            yield server.annotated(project, ids)
            done.advance(len(ids))


def _answers(
    tasks: Iterable[dict[str, Any]], server: LabelStudio, people: dict[int, str]
) -> Iterator[_Answer]:
    for task in tasks:
        for annotation in task["annotations"]:
            author = annotation.get("completed_by")
            reviewer = None if author is None else people.get(author, str(author))
            origin = f"{server.server}/tasks/{task['id']}/annotations/{annotation['id']}"
            item, image = str(task["data"].get(ITEM_ID)), str(task["data"].get("image"))
            yield _Answer(item, image, annotation, origin, reviewer)


def _pull_tasks(output: str, answers: Sequence[_Answer], classes: Sequence[str]) -> Counter[str]:
    items, known = _items_of(output, answers), known_review_ids(output)
    counted: Counter[str] = Counter()
    reviews = []
    for answer in answers:
        if answer.item not in items:
            counted["foreign"] += 1
        elif answer.review_id in known:
            counted["known"] += 1
        elif review := _usable(output, answer, items[answer.item], classes):
            reviews.append(review)
        else:
            counted["refused"] += 1
    added = append_reviews(output, reviews)
    counted["known"] += len(reviews) - len(added)
    for review in added:
        counted[review.verdict] += 1
        counted["overlap_pixels"] += review.overlap_pixels
    return counted


def _items_of(output: str, answers: Sequence[_Answer]) -> dict[str, dict[str, Any]]:
    """The manifest's row of each item that the answers are about, as it was first labelled."""
    if not answers:
        return {}
    uris = ", ".join("'" + answer.image_uri.replace("'", "''") + "'" for answer in answers)
    rows = query(output, _ITEMS.replace("$uris", uris)).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(
            item_id(row["image_uri"], row["image_etag"], row["model_id"], row["mask_sha256"]), row
        )
    return found


def _usable(output: str, answer: _Answer, row: dict[str, Any], classes: Sequence[str]) -> Review | None:
    try:
        return _review(output, answer, row, classes)
    except ReviewError as error:
        logger.warning("%s is not taken: %s", answer.origin, error)
        return None


def _review(output: str, answer: _Answer, row: dict[str, Any], classes: Sequence[str]) -> Review:
    if verdict := refusal(answer.annotation):
        return Review(verdict=verdict, **_NO_MASK, **_shared(answer, row))
    draft = read_mask(row["mask_uri"], row["mask_sha256"])
    drawn = drawing(answer.annotation, classes, (draft.shape[0], draft.shape[1]))
    if drawn.is_empty:
        return Review(verdict="rejected", **_NO_MASK, **_shared(answer, row))
    if np.array_equal(drawn.mask, draft):
        return Review(
            verdict="accepted", final_mask_uri=row["mask_uri"], final_mask_sha256=row["mask_sha256"],
            draft_iou=1.0, overlap_pixels=drawn.overlap_pixels, **_shared(answer, row),
        )  # fmt: skip
    return _corrected(output, answer, row, draft, drawn, len(classes))


def _corrected(
    output: str, answer: _Answer, row: dict[str, Any], draft: np.ndarray, drawn: Drawing, n_classes: int
) -> Review:
    content = encode_mask(drawn.mask, class_palette(n_classes))
    uri = storage.join(output, f"{MASKS}/{answer.item}/{answer.review_id}.png")
    storage.put(uri, content)  # the same bytes again after a pull that was killed before it wrote the review
    return Review(
        verdict="corrected", final_mask_uri=uri, final_mask_sha256=hashlib.sha256(content).hexdigest(),
        draft_iou=image_iou(drawn.mask, draft, n_classes, IGNORED), overlap_pixels=drawn.overlap_pixels,
        **_shared(answer, row),
    )  # fmt: skip


def _shared(answer: _Answer, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "review_id": answer.review_id,
        "item_id": answer.item,
        "image_uri": row["image_uri"],
        "image_etag": row["image_etag"],
        "model_id": row["model_id"],
        "draft_mask_sha256": row["mask_sha256"],
        "audit": row["audit"],
        "inclusion_probability": row["inclusion_probability"],
        "reviewer": answer.reviewer,
        "minutes": minutes_spent(answer.annotation),
        "reviewed_at": decided_at(answer.annotation),
        "origin": answer.origin,
    }
