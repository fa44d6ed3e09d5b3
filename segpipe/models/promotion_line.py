"""A line of models: one URL to label with, behind which the newest promoted model stands.

LINE/promotions/00000001.json, 00000002.json, ... each created exclusively and never changed; the highest
number counts. So a promotion is one object, the history is kept, and going back is one more promotion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segpipe import storage
from segpipe.errors import AlreadyExistsError, ModelError
from segpipe.numbered_records import numbered
from segpipe.validation import first_problem, parse_json

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


_PROMOTION = TypeAdapter(Promotion)


def promotions(line: str) -> list[Promotion]:
    """The history of a line, oldest first; empty when the URL is no line. Raises ModelError, StorageError."""
    return [_read(uri) for uri in _entries(line).values()]


def standing(history: Iterable[Promotion]) -> list[Promotion]:
    """The promotions that no way back has undone, oldest first; the last is the present one."""
    left: list[Promotion] = []
    for entry in history:
        left = [*left, entry] if entry.evidence else _back_to(entry, left)
    return left


def _back_to(entry: Promotion, left: list[Promotion]) -> list[Promotion]:
    places = [place for place, earlier in enumerate(left) if earlier.model_id == entry.model_id]
    return [*left[: places[-1]], entry] if places else [*left, entry]  # a way back once could lead forward


def last_number(line: str) -> int:
    """The number of the newest promotion, 0 before the first; removed ones are not counted. StorageError."""
    entries = _entries(line)
    return max(entries) if entries else 0


def promote(line: str, promotion: Promotion, after: int) -> None:
    """Add to a line whose newest promotion has this number, 0 before the first.

    Raises ModelError (another was quicker), StorageError.
    """
    uri = storage.join(storage.normalise(line), f"{FOLDER}/{after + 1:08d}.json")
    try:
        storage.create(uri, json.dumps(asdict(promotion), indent=1).encode())
    except AlreadyExistsError:
        raise ModelError(f"another promotion came in between at {line}: look at it, then repeat") from None


def resolve(url: str) -> str:
    """The URL of the bundle to use: of the newest promotion of a line, else the URL itself.

    Raises ModelError (a damaged promotion), StorageError.
    """
    entries = _entries(url)
    return _read(entries[max(entries)]).model if entries else url


def _entries(line: str) -> dict[int, str]:
    """The URI of each promotion by its number, in order."""
    return numbered(storage.join(storage.normalise(line), FOLDER))


def _read(uri: str) -> Promotion:
    try:
        return _PROMOTION.validate_python(parse_json(storage.read_bytes(uri)))
    except ValidationError as error:
        reason = first_problem(error)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise ModelError(f"{uri} is no promotion: {reason}; restore it, or remove it to go back")
