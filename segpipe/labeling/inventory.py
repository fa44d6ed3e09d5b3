"""What lies in a bucket: the objects to label, and a count of those left aside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa

from segpipe import storage
from segpipe.errors import RunError

OBJECT_SCHEMA = pa.schema(
    [
        ("image_uri", pa.string()),
        ("image_key", pa.string()),
        ("image_etag", pa.string()),
        ("image_bytes", pa.int64()),
    ]
)
HIDDEN = "hidden"
MASKS = "masks of another OUTPUT"
CONFIDENCE_MAPS = "confidence maps of another OUTPUT"
_OWN_IMAGE = re.compile(r"(?:^|/)(masks|confidence_maps)/[0-9a-f]{12}/.+\.png$", re.DOTALL)
# Files that lie next to images and say by their name that they are none. Any other object is planned: what it
# holds is found out when it is decoded, so that an image under a wrong name is labelled all the same.
SIDECAR_EXTENSIONS = frozenset(
    (
        *(".aae", ".arrow", ".csv", ".db", ".geojson", ".htm", ".html", ".ini", ".json"),
        *(".jsonl", ".lock", ".log", ".md", ".md5", ".parquet", ".pdf", ".rst", ".sha256"),
        *(".toml", ".tsv", ".txt", ".xml", ".xmp", ".yaml", ".yml"),
    )
)
_CHUNK = 50_000


@dataclass(frozen=True)
class Inventory:
    """The objects to label (OBJECT_SCHEMA) and, per reason (extension, hidden), how many were left aside."""

    objects: pa.Table
    skipped: dict[str, int]


def check_places(source: str, output: str) -> tuple[str, str]:
    """SOURCE and OUTPUT normalised, before anything is written.

    Raises NotFoundError when SOURCE does not exist, RunError when it is OUTPUT or nothing is in it.
    """
    source, output = storage.normalise(source), storage.normalise(output)
    if source == output:
        raise RunError(
            f"SOURCE and OUTPUT are both {storage.redact(source)}: give OUTPUT a folder of its own"
        )
    if next(iter(storage.list_objects(source)), None) is None:
        raise RunError(_nothing_to_label(source, Counter()))
    return source, output


def take_inventory(source: str, output: str) -> Inventory:
    """List SOURCE, without what lies below OUTPUT.

    Raises NotFoundError when SOURCE does not exist, RunError when it holds nothing to label.
    """
    source, output = check_places(source, output)
    skipped: Counter[str] = Counter()
    objects = _objects_table(_labelable(_outside(output, source), skipped))
    if objects.num_rows == 0:
        raise RunError(_nothing_to_label(source, skipped))
    return Inventory(objects, dict(sorted(skipped.items())))


def _outside(output: str, source: str) -> Iterator[storage.StoredObject]:
    own = output + "/" if output.startswith(source + "/") else None
    return (found for found in storage.list_objects(source) if own is None or not found.uri.startswith(own))


def _labelable(
    found: Iterable[storage.StoredObject], skipped: Counter[str]
) -> Iterator[storage.StoredObject]:
    for candidate in found:
        aside = _left_aside(candidate.key)
        if aside is None:
            yield candidate
        else:
            skipped[aside] += 1


def _left_aside(key: str) -> str | None:
    """Under which name the object is counted as left aside; None when it is to be labelled."""
    components = key.split("/")
    if any(component.startswith(".") and component not in (".", "..") for component in components):
        return HIDDEN
    if own := _OWN_IMAGE.search(key):
        return MASKS if own[1] == "masks" else CONFIDENCE_MAPS
    extension = PurePosixPath(components[-1]).suffix.lower()
    return extension if extension in SIDECAR_EXTENSIONS else None


def _objects_table(objects: Iterator[storage.StoredObject]) -> pa.Table:
    """Built in chunks: a listing of millions of objects is never held as Python objects."""
    batches = iter(lambda: _record_batch(list(islice(objects, _CHUNK))), None)
    return pa.Table.from_batches(batches, OBJECT_SCHEMA)


def _record_batch(objects: list[storage.StoredObject]) -> pa.RecordBatch | None:
    if not objects:
        return None
    columns = [
        [found.uri for found in objects],
        [found.key for found in objects],
        [found.etag for found in objects],
        [found.size for found in objects],
    ]
    return pa.record_batch(columns, schema=OBJECT_SCHEMA)


def _nothing_to_label(source: str, skipped: Counter[str]) -> str:
    aside = ", ".join(f"{count} {name}" for name, count in sorted(skipped.items()))
    found = f"only {aside}" if aside else "it is empty"
    return f"no images under {storage.redact(source)} ({found}): give the folder or bucket that holds them"
