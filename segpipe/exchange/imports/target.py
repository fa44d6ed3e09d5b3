"""Where an import goes: only where no other import is, and marked until all of it is there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping

from segpipe import storage
from segpipe.csv_text import csv_text
from segpipe.datasets import (
    DESCRIPTION,
    IGNORED,
    UNFINISHED_IMPORT,
    key_of,
    read_description,
    write_dataset,
)
from segpipe.errors import DatasetError, NotFoundError
from segpipe.exchange.files import LEFT_OUT
from segpipe.exchange.imports.labelled import Found, LeftOut
from segpipe.image_range import ImageRange, shown_range
from segpipe.listing import left_aside
from segpipe.redaction import redact

Origin = Mapping[str, str]  # what makes two imports the same one: source, layout, settings
Row = tuple[str, ...]
_COLUMNS = ("file", "image", "annotation", "reason")


def begin(root: str, found: Found, image_range: ImageRange | None, origin: Origin) -> None:
    """Mark the target as one whose import has not ended.

    The same import may be done again when it was stopped, and another split may join the same classes. Raises
    DatasetError for a target that holds a split's files already, other classes, another range or another
    unfinished import.
    """
    marked = _marked(root)
    if marked not in (None, origin):
        raise DatasetError(_of_another(root, marked or {}))
    described = storage.exists(storage.join(root, DESCRIPTION))
    if described:
        _require_same_meaning(root, found, image_range)
    _read_left_out(root)
    if marked is None:
        _require_free(root, found, described)
    else:
        _require_own(root, found)
    storage.put(storage.join(root, UNFINISHED_IMPORT), json.dumps(origin, indent=1).encode())


def end(root: str, name: str, classes: tuple[str, ...], image_range: ImageRange | None) -> None:
    """Make a data set of the target, unless it is one, and unmark it. StorageError."""
    if not storage.exists(storage.join(root, DESCRIPTION)):
        write_dataset(root, name, classes, IGNORED, image_range)
    unmark(root)


def unmark(root: str) -> None:
    """The import has ended. StorageError."""
    storage.delete(storage.join(root, UNFINISHED_IMPORT))


def name_left_out(root: str, left_out: list[LeftOut]) -> None:
    """Add to left_out.csv what is not in it yet: imports of other splits may have named theirs there."""
    rows = [(one.file, one.image, one.annotation, one.reason) for one in left_out]
    kept = dict.fromkeys([*_read_left_out(root), *rows])
    storage.put(storage.join(root, LEFT_OUT), csv_text(_COLUMNS, kept))


def _marked(root: str) -> Origin | None:
    """What the mark says; None where there is none."""
    try:
        content = json.loads(storage.read_bytes(storage.join(root, UNFINISHED_IMPORT)))
    except NotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_another(root: str, marked: Origin) -> str:
    what = f"of {marked['source']} as {marked.get('layout')} " if "source" in marked else ""
    return (
        f"{redact(root)} holds an import {what}that did not end: run that one again, remove the folder, or "
        "import into another"
    )


def _require_same_meaning(root: str, found: Found, image_range: ImageRange | None) -> None:
    there = read_description(root)
    if there.classes != found.classes:
        raise DatasetError(
            f"{redact(root)} is a data set of other classes, {_some(there.classes)}, not "
            f"{_some(found.classes)}: import into another folder"
        )
    if there.ignore_index != IGNORED:
        raise DatasetError(
            f"{redact(root)} ignores index {there.ignore_index}, imports ignore {IGNORED}: import into "
            "another folder"
        )
    if there.image_range != image_range:
        raise DatasetError(
            f"{redact(root)} has the image range {shown_range(there.image_range)}, not "
            f"{shown_range(image_range)}: import into another folder, or give --image-range as it is there"
        )


def _some(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
    return f"{', '.join(classes[:3])}{more}"


def _require_free(root: str, found: Found, described: bool) -> None:
    splits = {image.split for image in found.images}
    for split, _, name in _samples_at(root):
        if not described:
            raise DatasetError(
                f"{redact(root)} holds {split}/{name} and no {DESCRIPTION}, as an import that did not end: "
                "remove the folder, or import into another"
            )
        if split in splits:
            raise DatasetError(
                f"{redact(root)} has a split {split!r} already, with {name}: import into another folder, or "
                "remove that split"
            )


def _require_own(root: str, found: Found) -> None:
    """What a stopped import has left is all among what it imports, also if its source was changed since."""
    expected = {(image.split, image.key) for image in found.images}
    splits = {split for split, _ in expected}
    for split, key, name in _samples_at(root):
        if split in splits and (split, key) not in expected:
            raise DatasetError(
                f"{redact(root)} holds {split}/{name} of an import that did not end, and its source has it "
                "no more: remove the folder and import again"
            )


def _samples_at(root: str) -> Iterator[tuple[str, str, str]]:
    """Split, key and path in the split of every image and mask there is."""
    try:
        for item in storage.list_objects(root):
            split, _, name = item.key.partition("/")
            folder, slash, path = name.partition("/")
            if slash and folder in ("images", "masks") and left_aside(path) is None:
                yield split, key_of(path), name
    except NotFoundError:
        return


def _read_left_out(root: str) -> list[Row]:
    """Those of earlier imports. DatasetError for a file of another kind, which would be lost."""
    uri = storage.join(root, LEFT_OUT)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except NotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or rows[0] != _COLUMNS:
        raise DatasetError(f"{redact(uri)} is of no import: move it away, or import into another folder")
    return rows[1:]
