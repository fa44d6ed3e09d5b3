"""A ledger of the tests that labelled images were used for: which images, at which error.

Numbered records, each created exclusively before its test is made: a test that was killed has been made. The
same test on the same images again is no further look, since it says the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from segpipe.errors import AlreadyExistsError
from segpipe.numbered_records import add_record, read_records

SCHEMA_VERSION = 1
_RESTORE = "restore it; without it nobody knows how often these images have been looked at"


@dataclass(frozen=True)
class Test:
    """One test: of whom, what about (for people), a digest of all that makes it this test, the error (0 to 1)
    it may make, and the digests of the images' pixels. made_at: ISO 8601 in UTC."""

    subject: str
    about: str
    asked: str
    level: Annotated[float, Field(gt=0, lt=1)]
    images: tuple[str, ...]
    made_at: str

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    __test__ = False  # of pytest


@dataclass(frozen=True)
class Question:
    """What is to be tested: of whom, in words, all that makes it this test (as JSON), on which images."""

    subject: str
    about: str
    asked: Mapping[str, object]
    images: Collection[str]


@dataclass(frozen=True)
class Spent:
    """The number-th test of a subject on images that overlap, its error, and that of all of them together."""

    number: int
    level: float
    all_levels: float


_TEST = TypeAdapter(Test)


def spend(folder: str, question: Question, level_of: Callable[[int], float]) -> Spent:
    """Enter a test into the ledger in `folder`, unless it is there; level_of gives its error by its number.

    Raises StorageError, also for a record that cannot be read.
    """
    asked = json.dumps(question.asked, sort_keys=True, default=str)
    digest = hashlib.sha256(asked.encode()).hexdigest()
    wanted = tuple(sorted(question.images))
    while True:
        records = read_records(folder, _TEST, SCHEMA_VERSION, _RESTORE)
        before = [one for one in records.values() if _concerns(one, question)]
        all_levels = sum(one.level for one in before)
        for number, one in enumerate(before, 1):
            if (one.asked, one.images) == (digest, wanted):
                return Spent(number, one.level, all_levels)
        number = len(before) + 1
        test = Test(question.subject, question.about, digest, level_of(number), wanted, _now())
        try:
            add_record(folder, max(records, default=0) + 1, asdict(test), SCHEMA_VERSION)
        except AlreadyExistsError:
            continue  # another test was quicker, and may be of these images
        return Spent(number, test.level, all_levels + test.level)


def _concerns(test: Test, question: Question) -> bool:
    return test.subject == question.subject and not set(question.images).isdisjoint(test.images)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
