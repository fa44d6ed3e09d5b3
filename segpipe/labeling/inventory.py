"""What lies in a bucket: the objects to label, and a count of those left aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from segpipe import storage
from segpipe.errors import RunError
from segpipe.labeling.inventory_list import OBJECT_SCHEMA, read_list
from segpipe.listing import NOT_UTF8, left_aside
from segpipe.redaction import redact

# Surely to be labelled, by RE2, unless a folder has a name that listing.py looks at.
_PLAIN_IMAGE = r"(?i)^(?:[a-z0-9_-][a-z0-9._-]*/)*[a-z0-9_-][a-z0-9._-]*\.(?:jpe?g|png|tiff?|webp|bmp)$"
_OTHER_FOLDER = "(?:masks|confidence_maps|__MACOSX)/"
_CHUNK = 50_000
_LISTED = ("uri", "key", "etag", "size", "storage_class")


@dataclass(frozen=True)
class Inventory:
    """The objects to label (OBJECT_SCHEMA), read once; `skipped` fills meanwhile: why and how many.

    An ETag is null where a list gave none. `live` tells a listing, which is as things are, from a list.
    """

    objects: Iterator[pa.RecordBatch]
    skipped: Counter[str]
    live: bool


def check_places(source: str, output: str) -> tuple[str, str]:
    """SOURCE and OUTPUT normalised, before anything is written.

    Raises NotFoundError when SOURCE does not exist, RunError when it is OUTPUT or nothing is in it.
    """
    source, output = storage.normalise(source), storage.normalise(output)
    if source == output:
        raise RunError(f"SOURCE and OUTPUT are both {redact(source)}: give OUTPUT a folder of its own")
    skipped: Counter[str] = Counter()
    if next(_listing(source, skipped), None) is None:
        raise RunError(_nothing_to_label(source, skipped))
    return source, output


def take_inventory(source: str, output: str, listed_in: str | None = None) -> Inventory:
    """What is in SOURCE, by listing it or from the list at URL `listed_in`, without what lies below OUTPUT.

    Raises NotFoundError when SOURCE or the list does not exist, RunError when SOURCE is empty or OUTPUT;
    while it is read, RunError when there is nothing to label and what inventory_list.read_list raises.
    """
    source, output = check_places(source, output)
    skipped: Counter[str] = Counter()
    found = _listed(source, skipped) if listed_in is None else read_list(listed_in, source, skipped)
    objects = _labelable(_outside(output, source, found), skipped)
    place = source if listed_in is None else f"{source} in the list {listed_in}"
    return Inventory(_not_empty(objects, place, skipped), skipped, live=listed_in is None)


def _listing(source: str, skipped: Counter[str]) -> Iterator[storage.StoredObject]:
    return storage.list_objects(source, lambda _: skipped.update([NOT_UTF8]))


def _listed(source: str, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    """Made in chunks: a listing of millions of objects is never held as Python objects."""
    objects = _listing(source, skipped)
    while chunk := list(islice(objects, _CHUNK)):
        columns = [[getattr(found, name) for found in chunk] for name in _LISTED]
        yield pa.record_batch(columns, schema=OBJECT_SCHEMA)


def _outside(output: str, source: str, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if not output.startswith(source + "/"):
        yield from found
        return
    for batch in found:
        yield batch.filter(pc.invert(pc.starts_with(batch["image_uri"], output + "/")))


def _labelable(found: Iterable[pa.RecordBatch], skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    for batch in found:
        aside = _all_left_aside(batch["image_key"])
        skipped.update(reason for reason in aside.drop_null().to_pylist())
        yield batch.filter(aside.is_null())


def _all_left_aside(keys: pa.Array) -> pa.Array:
    """`left_aside` of each: keys that are plainly an image's without a Python object for each."""
    plain = pc.match_substring_regex(keys, _PLAIN_IMAGE)
    odd = pc.or_(pc.invert(plain), pc.match_substring_regex(keys, _OTHER_FOLDER))
    reasons = [left_aside(key) for key in keys.filter(odd).to_pylist()]
    return pc.replace_with_mask(pa.nulls(len(keys), pa.string()), odd, pa.array(reasons, pa.string()))


def _not_empty(
    objects: Iterable[pa.RecordBatch], place: str, skipped: Counter[str]
) -> Iterator[pa.RecordBatch]:
    n_objects = 0
    for batch in objects:
        n_objects += batch.num_rows
        yield batch
    if not n_objects:
        raise RunError(_nothing_to_label(place, skipped))


def _nothing_to_label(place: str, skipped: Counter[str]) -> str:
    aside = ", ".join(f"{count} {name}" for name, count in sorted(skipped.items()))
    found = f"only {aside}" if aside else "it is empty"
    return f"no images under {redact(place)} ({found}): give the folder or bucket that holds them"
