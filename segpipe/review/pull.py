"""Decisions from people: the annotations of a Label Studio project become reviews of OUTPUT, each once."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from segpipe import storage
from segpipe.errors import ReviewError
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.reviews import Review, append_reviews, item_id, known_review_ids
from segpipe.manifests.views import open_views
from segpipe.progress import track
from segpipe.redaction import redact
from segpipe.review.agreement import draft_iou
from segpipe.review.annotations import (
    Annotation,
    Drawing,
    blank_as_first_class,
    drawing,
    read_annotation,
    refusal,
    review_id,
)
from segpipe.review.drafts import read_draft
from segpipe.review.label_studio import LabelStudio, Project, UnreadableError, in_one_line
from segpipe.review.model_classes import classes_by_model
from segpipe.review.tasks import AnsweredTask, Refusal, answered_task, listed_task, number_of

logger = logging.getLogger(__name__)

TASKS_PER_EXPORT = 50
MASKS = "reviews/masks"

_ITEMS = """
    SELECT image_uri, image_etag, model_id, mask_uri, mask_sha256, audit, inclusion_probability, from_scratch
    FROM labels WHERE mask_sha256 IS NOT NULL AND list_contains($uris, image_uri)
    ORDER BY labeled_at"""

_NO_MASK: dict[str, Any] = {
    "final_mask_uri": None,
    "final_mask_sha256": None,
    "draft_iou": None,
    "draft_iou_graded": None,
    "overlap_pixels": 0,
    "final_class_pixels": None,
}


@dataclass(frozen=True)
class PullSummary:
    """How many new decisions of each kind came; known: pulled before; foreign: of another OUTPUT or no item.

    refused: so many annotations and tasks say nothing usable; refusals names each, by where it is in Label
    Studio, with the reason, and so does the log. overlap_pixels: claimed by several classes.
    """

    accepted: int
    corrected: int
    rejected: int
    skipped: int
    known: int
    foreign: int
    refused: int
    overlap_pixels: int
    refusals: dict[str, Refusal]


@dataclass(frozen=True)
class _Place:
    """Where an answer is: the project's title, the numbers of task and annotation, and its URL."""

    project: str
    task: int | None
    annotation: int | None
    origin: str


@dataclass(frozen=True)
class _Answer:
    """One annotation of one task about an item; from_scratch: the task had no draft."""

    place: _Place
    item: str
    image_uri: str
    annotation: Annotation
    reviewer: str | None
    from_scratch: bool

    @property
    def review_id(self) -> str:
        return review_id(self.item, self.annotation)


@dataclass(frozen=True)
class _Source:
    """A project of the server, and who is who on it."""

    server: LabelStudio
    project: Project
    people: dict[int, str]

    def place(self, path: str, task: int | None = None, annotation: int | None = None) -> _Place:
        return _Place(self.project.title, task, annotation, f"{self.server.server}/{path}")


@dataclass
class _Outcome:
    """What has come of the answers so far."""

    counted: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, Refusal] = field(default_factory=dict)

    def refuse(self, place: _Place, reason: object) -> None:
        logger.warning("%s is not taken: %s", place.origin, in_one_line(str(reason)))
        self.counted["refused"] += 1
        refusal = Refusal(place.project, place.task, place.annotation, in_one_line(str(reason)))
        self.refusals[place.origin] = refusal

    def summary(self) -> PullSummary:
        counts = {kind: self.counted[kind] for kind in PullSummary.__dataclass_fields__ if kind != "refusals"}
        return PullSummary(**counts, refusals=self.refusals)


def pull(output: str, project_title: str, server: LabelStudio) -> PullSummary:
    """Append what people have decided in the project since the last pull to the reviews of OUTPUT.

    Where several projects have this title (two first pushes at once), all of them are read. A decision is its
    annotation as it was last changed: a later change is a later decision. An answer that cannot be used stops
    no other. Corrected masks are written before their reviews. Killed at any moment, the next pull adds what
    is missing. Raises ReviewError, StorageError, NotFoundError.
    """
    output = storage.normalise(output)
    known_review_ids(output)  # a wrong address is said before the server is asked
    projects = server.projects(project_title)
    if not projects:
        raise ReviewError(f"there is no project {project_title!r} on {redact(server.server)}: push first")
    people, outcome = server.people(), _Outcome()
    for project in projects:
        source = _Source(server, project, people)
        for rows in _answered(source, outcome):
            _pull_answers(output, list(_answers(source, rows, outcome)), outcome)
    return outcome.summary()


def _answered(source: _Source, outcome: _Outcome) -> Iterator[list[object]]:
    """The tasks with answers, some at a time."""
    listed = [listed_task(row) for row in source.server.tasks(source.project)]
    if nameless := listed.count(None):
        reason = f"{nameless} tasks in its list have no number, or cannot be read: look at the project"
        outcome.refuse(source.place(f"projects/{source.project.id}"), reason)
    answered = [task.number for task in listed if task and task.is_answered]
    with track(len(answered), "decisions", "tasks") as done:
        for start in range(0, len(answered), TASKS_PER_EXPORT):
            ids = answered[start : start + TASKS_PER_EXPORT]
            yield _exported(source, ids, outcome)
            done.advance(len(ids))


def _exported(source: _Source, ids: Sequence[int], outcome: _Outcome) -> list[object]:
    """The tasks of these numbers; one that cannot be read keeps all of an answer from it: so by halves."""
    try:
        return source.server.annotated(source.project, ids)
    except UnreadableError as error:
        if len(ids) == 1:
            outcome.refuse(source.place(f"tasks/{ids[0]}", ids[0]), error)
            return []
    middle = len(ids) // 2
    return [row for half in (ids[:middle], ids[middle:]) for row in _exported(source, half, outcome)]


def _answers(source: _Source, rows: Iterable[object], outcome: _Outcome) -> Iterator[_Answer]:
    for row in rows:
        task = answered_task(row)
        if task is None:
            number = number_of(row)
            place = source.place(f"tasks/{'?' if number is None else number}", number)
            outcome.refuse(place, "the task has an unexpected shape: look at it in the project")
        elif task.item is None or task.image_uri is None:
            outcome.counted["foreign"] += len(task.annotations)
        else:
            yield from _answers_to(source, task, task.item, task.image_uri, outcome)


def _answers_to(
    source: _Source, task: AnsweredTask, item: str, image_uri: str, outcome: _Outcome
) -> Iterator[_Answer]:
    now = datetime.now(UTC)
    for index, found in enumerate(task.annotations, 1):
        number = number_of(found)
        name = f"#{index}" if number is None else number
        place = source.place(f"tasks/{task.number}/annotations/{name}", task.number, number)
        try:
            annotation = read_annotation(found, now)
        except ReviewError as error:
            outcome.refuse(place, error)
        else:
            reviewer = _reviewer(annotation.author, source.people)
            yield _Answer(place, item, image_uri, annotation, reviewer, task.from_scratch)


def _reviewer(author: int | str | None, people: dict[int, str]) -> str | None:
    return people.get(author, str(author)) if isinstance(author, int) else author


def _pull_answers(output: str, answers: Sequence[_Answer], outcome: _Outcome) -> None:
    items, known = _items_of(output, answers), known_review_ids(output)
    classes = classes_by_model(output, (row["model_id"] for row in items.values()))
    reviews = []
    for answer in answers:
        if (row := items.get(answer.item)) is None:
            outcome.counted["foreign"] += 1
        elif answer.review_id in known:
            outcome.counted["known"] += 1
        else:
            try:
                reviews.append(_review(output, answer, row, classes[row["model_id"]]))
            except ReviewError as error:
                outcome.refuse(answer.place, error)
    added = append_reviews(output, reviews)
    outcome.counted["known"] += len(reviews) - len(added)
    for review in added:
        outcome.counted[review.verdict] += 1
        outcome.counted["overlap_pixels"] += review.overlap_pixels


def _items_of(output: str, answers: Sequence[_Answer]) -> dict[str, dict[str, Any]]:
    """The manifest's row of each item that the answers are about, as it was first labelled."""
    if not answers:
        return {}
    with open_views(output) as connection:
        uris = sorted({answer.image_uri for answer in answers})
        rows = connection.sql(_ITEMS, params={"uris": uris}).to_arrow_table().to_pylist()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(
            item_id(row["image_uri"], row["image_etag"], row["model_id"], row["mask_sha256"]), row
        )
    return found


def _review(output: str, answer: _Answer, row: dict[str, Any], classes: Sequence[str]) -> Review:
    if verdict := refusal(answer.annotation):
        return Review(verdict=verdict, **_NO_MASK, **_shared(answer, row))
    draft = read_draft(row["mask_uri"], row["mask_sha256"], len(classes))
    drawn = drawing(answer.annotation, classes, (draft.shape[0], draft.shape[1]))
    if answer.from_scratch:
        drawn = blank_as_first_class(drawn)
    if drawn.is_empty:
        return Review(verdict="rejected", **_NO_MASK, **_shared(answer, row))
    if np.array_equal(drawn.mask, draft):
        return Review(
            verdict="accepted", final_mask_uri=row["mask_uri"], final_mask_sha256=row["mask_sha256"],
            draft_iou=1.0, draft_iou_graded=1.0, overlap_pixels=drawn.overlap_pixels,
            final_class_pixels=_class_pixels(draft, len(classes)), **_shared(answer, row),
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
        draft_iou=draft_iou(draft, drawn.mask, n_classes, "every_class"),
        draft_iou_graded=draft_iou(draft, drawn.mask, n_classes, "graded"),
        overlap_pixels=drawn.overlap_pixels,
        final_class_pixels=_class_pixels(drawn.mask, n_classes),
        **_shared(answer, row),
    )  # fmt: skip


def _class_pixels(mask: np.ndarray, n_classes: int) -> list[int]:
    """Pixels of each class; what was erased is of none."""
    return np.bincount(mask.ravel(), minlength=n_classes)[:n_classes].tolist()


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
        "minutes": answer.annotation.minutes,
        "reviewed_at": answer.annotation.decided_at,
        "origin": answer.place.origin,
        "from_scratch": answer.from_scratch and bool(row["from_scratch"]),
    }
