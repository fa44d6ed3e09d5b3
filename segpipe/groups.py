"""What images belong together, such as the frames of one video: by DATA/groups.csv, or by their keys."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence

from segpipe import storage
from segpipe.csv_text import csv_text
from segpipe.datasets import Dataset
from segpipe.errors import DatasetError, NotFoundError
from segpipe.name_groups import group_of, quoted

logger = logging.getLogger(__name__)

FILE = "groups.csv"
COLUMNS = ("key", "group")
MAX_BYTES = 2**28  # some millions of lines


def read_groups(dataset: Dataset) -> dict[str, str] | None:
    """Image key -> group, of every split, from groups.csv; None where a data set has none.

    Raises DatasetError for a file that is no such table, for a key that is named twice or has no group.
    """
    uri = groups_uri(dataset)
    try:
        text = storage.read(uri, MAX_BYTES).data.decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return _checked(rows, uri)
    except NotFoundError:
        return None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{uri} is no CSV file in UTF-8 ({error}): save it as such") from None


def groups_uri(dataset: Dataset) -> str:
    """Where a data set's groups.csv is, or would be."""
    return storage.join(dataset.root, FILE)


def write_groups(dataset: Dataset, groups: Mapping[str, str]) -> None:
    """Write groups.csv, sorted by key. StorageError."""
    storage.put(groups_uri(dataset), csv_text(COLUMNS, sorted(groups.items())))


def image_groups(dataset: Dataset, keys: Sequence[str], pattern: str | None) -> list[str] | None:
    """The group of each image: by the pattern, else by groups.csv; None where there is neither.

    Raises DatasetError for an image without a group.
    """
    if pattern is not None:
        return group_names(keys, pattern)
    groups = read_groups(dataset)
    if groups is None:
        return None
    found = listed_groups(dataset, keys, groups)
    logger.info("%d images in %d groups, by %s", len(keys), len(set(found)), groups_uri(dataset))
    return found


def listed_groups(dataset: Dataset, keys: Iterable[str], groups: Mapping[str, str]) -> list[str]:
    """The group of each image. Raises DatasetError for an image that groups.csv does not name."""
    keys = list(keys)
    missing = [key for key in keys if key not in groups]
    if missing:
        more = f" nor for {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"{groups_uri(dataset)} has no line for the image {missing[0]!r}{more}: add KEY,GROUP, the key "
            "being the path below images/ without its extension, or group by a regular expression"
        )
    return [groups[key] for key in keys]


def group_names(keys: Sequence[str], pattern: str) -> list[str]:
    """What each image belongs to: the pattern's first match in its key, or that match's first group.

    Raises DatasetError for a key without a match.
    """
    return [_group_name(key, pattern) for key in keys]


def _group_name(key: str, pattern: str) -> str:
    name = group_of(key, pattern)
    if name is None:
        raise DatasetError(
            f"{quoted(pattern)} finds no group in the image key {key!r}: give a regular expression that "
            "matches every key"
        )
    return name


def _checked(rows: csv.DictReader[str], uri: str) -> dict[str, str]:
    if not set(COLUMNS) <= set(rows.fieldnames or ()):
        raise DatasetError(f"{uri} must begin with the line key,group and have commas between its columns")
    groups: dict[str, str] = {}
    for row in rows:
        key, group = row["key"], row["group"]
        if not key or not group:
            raise DatasetError(f"{uri}, line {rows.line_num}: give a key and a group")
        if key in groups:
            raise DatasetError(f"{uri}, line {rows.line_num}: {key!r} is named before: leave one line for it")
        groups[key] = group
    return groups
