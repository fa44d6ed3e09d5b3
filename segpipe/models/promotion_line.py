"""A line of models: one URL to label with, behind which the newest promoted model stands.

LINE/promotions/00000001.json, 00000002.json, ... each created exclusively and never changed; the highest
number counts. So a promotion is one object, the history is kept, and going back is one more promotion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from segpipe import storage
from segpipe.errors import AlreadyExistsError, ModelError, NotFoundError

FOLDER = "promotions"


@dataclass(frozen=True)
class Promotion:
    """Which model a line stands for from `promoted_at` (ISO 8601, UTC) on, and why.

    evidence: what the comparison found; empty for a way back.
    """

    model: str
    model_id: str
    reason: str
    evidence: dict[str, Any]
    promoted_at: str


def promotions(line: str) -> list[Promotion]:
    """The history of a line, oldest first; empty when the URL is no line. Raises ModelError, StorageError."""
    return [_read(uri) for uri in _entries(line)]


def standing(history: Iterable[Promotion]) -> list[Promotion]:
    """The promotions that no way back has undone, oldest first; the last is the present one."""
    left: list[Promotion] = []
    for entry in history:
        left = [*left, entry] if entry.evidence else _back_to(entry, left)
    return left


def _back_to(entry: Promotion, left: list[Promotion]) -> list[Promotion]:
    places = [place for place, earlier in enumerate(left) if earlier.model_id == entry.model_id]
    return [*left[: places[-1]], entry] if places else [*left, entry]  # a way back once could lead forward


def promote(line: str, promotion: Promotion, n_before: int) -> None:
    """Add to a line that has n_before promotions. Raises ModelError (another was quicker), StorageError."""
    uri = storage.join(storage.normalise(line), f"{FOLDER}/{n_before + 1:08d}.json")
    try:
        storage.create(uri, json.dumps(asdict(promotion), indent=1).encode())
    except AlreadyExistsError:
        raise ModelError(f"another promotion came in between at {line}: look at it, then repeat") from None


def resolve(url: str) -> str:
    """The URL of the bundle to use: of the newest promotion of a line, else the URL itself.

    Raises ModelError (a damaged promotion), StorageError.
    """
    entries = _entries(url)
    return _read(entries[-1]).model if entries else url


def _entries(line: str) -> list[str]:
    try:
        listed = storage.list_objects(storage.join(storage.normalise(line), FOLDER))
        return [found.uri for found in listed if found.key.endswith(".json")]
    except NotFoundError:
        return []


def _read(uri: str) -> Promotion:
    try:
        return Promotion(**json.loads(storage.read_bytes(uri)))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{uri} is no promotion: {error}; restore it, or remove it to go back") from None
