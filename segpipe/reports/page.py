"""One self-contained HTML page: what it shows as plain data, and the template that shows it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Figure:
    """A named number; None or NaN where it is undefined. Shown rounded, kept whole in the page's source."""

    name: str
    value: float | None


@dataclass(frozen=True)
class Merit:
    """One score's figure of merit, and whether no other score has a better one."""

    value: float
    best: bool


@dataclass(frozen=True)
class ScoreRow:
    """A score and its merits, in the order of the page's merit names."""

    name: str
    merits: tuple[Merit, ...]


@dataclass(frozen=True)
class GroupRow:
    """A group of images: how many, their mean IoU and confidence, and what of the gap is closed on them by
    the score that routes, and by the best of all."""

    name: str
    images: int
    iou: float
    confidence: float
    gap_closed: float
    best_gap_closed: float
    best_score: str


@dataclass(frozen=True)
class GroupPart:
    """The groups of a split, the one with the worst masks first; left_out: so many more are not shown."""

    rows: tuple[GroupRow, ...]
    left_out: int


@dataclass(frozen=True)
class ImageRow:
    """An image with its raw score, the confidence that is shown, its true IoU and its decision, if any."""

    key: str
    score: float
    confidence: float
    iou: float
    decision: str | None


@dataclass(frozen=True)
class Picture:
    """A picture with its file name, its heading and what it says, in words."""

    file: str
    title: str
    caption: str
    png: bytes
    kind: str = "image/png"

    @property
    def data_uri(self) -> str:
        """The picture as a URI that needs no request."""
        return f"data:{self.kind};base64,{base64.b64encode(self.png).decode('ascii')}"


@dataclass(frozen=True)
class PolicyPart:
    """A policy in words, and what it would do on this split."""

    promise: str
    facts: tuple[tuple[str, str], ...]
    outcome: tuple[Figure, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """What the page shows. `merits` are (name, whether higher is better); `worst` starts with the worst;
    `groups` is None where nothing says what belongs together."""

    title: str
    facts: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    quality: tuple[Figure, ...]
    policy: PolicyPart
    merits: tuple[tuple[str, bool], ...]
    scores: tuple[ScoreRow, ...]
    groups: GroupPart | None
    pictures: tuple[Picture, ...]
    classes: tuple[Figure, ...]
    worst: Sequence[ImageRow]


def render(template: str, page: object) -> str:
    """A page as HTML, by a template of reports/templates; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("segpipe.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page=page)
