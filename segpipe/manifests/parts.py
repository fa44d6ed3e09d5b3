"""Where the committed parts of OUTPUT lie."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.dataset as ds

from segpipe import storage
from segpipe.errors import NotFoundError, StorageError
from segpipe.printable import printable
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

# What pyarrow and JSON raise for content that is damaged, or of somebody else.
ERRORS_OF_CONTENT = (
    *(pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError, OverflowError),
    RecursionError,
)

# The chain shows for ever that a part was taken away, which is what it is for.
LABEL_AGAIN = "remove it and label again (segpipe verify will go on naming the gap)"
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PART_NAME = re.compile(
    rf"(?P<day>run_date=\d{{4}}-\d\d-\d\d)/(?P<run_id>{RUN_ID.pattern})-(?P<shard>\d{{5,}})\.parquet"
)


def manifests_root(output: str) -> str:
    """The folder that holds the parts of OUTPUT and nothing else."""
    return storage.join(output, "manifests")


def list_parts(output: str) -> list[storage.StoredObject]:
    """Every committed part of OUTPUT; empty when nothing has been labelled.

    Parquet of another name or place below manifests/ is none, and is said: its rows would be nobody's, or
    those of a part twice.
    """
    listed = list_parquet(manifests_root(output))
    parts = [found for found in listed if PART_NAME.fullmatch(found.key)]
    if len(parts) < len(listed):
        strangers = sorted({found.key for found in listed} - {part.key for part in parts})
        _say_left_out(manifests_root(output), len(strangers), strangers[0])
    return parts


@lru_cache(maxsize=64)  # a command lists the parts several times, and says it once
def _say_left_out(root: str, strangers: int, first: str) -> None:
    logger.warning(
        "%d Parquet files below %s are not named like a part of a run, %s for example: they are left out, "
        "remove them",
        strangers,
        redact(root),
        printable(redact(first)),
    )


def list_parquet(root: str) -> list[storage.StoredObject]:
    """The Parquet objects below a folder, sorted by key; empty when the folder does not exist.

    Hidden files (macOS leaves ._NAME beside each) are none, as they are none to pandas.
    """
    try:
        return [found for found in storage.list_objects(root) if _is_parquet(found.key)]
    except NotFoundError:
        return []


def _is_parquet(key: str) -> bool:
    return key.endswith(".parquet") and not key.rpartition("/")[2].startswith(".")


def require_output(output: str) -> None:
    """Raise NotFoundError where nothing was labelled.

    A run that has begun has left its plan, one that has finished a shard a part of the manifest.
    """
    if not any(_holds_objects(storage.join(output, folder)) for folder in ("runs", "manifests")):
        raise NotFoundError(
            f"nothing was labelled under {redact(output)}: give the OUTPUT of a labelling run"
        )


def _holds_objects(folder: str) -> bool:
    try:
        return next(storage.list_objects(folder), None) is not None
    except NotFoundError:
        return False


def classes_in(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """The classes that a part's metadata names. ValueError, KeyError or RecursionError when it is damaged."""
    classes = json.loads((metadata or {})[b"segpipe.classes"])
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError("segpipe.classes is no list of names")
    return tuple(classes)


def rows_in(
    content: bytes, schema: pa.Schema, never_null: Sequence[str], where: ds.Expression | None = None
) -> pa.Table:
    """The rows of a Parquet file as `schema`; columns it lacks are null, or what the expression `where` says.

    Raises ValueError when a column of never_null has a null, and what pyarrow raises.
    """
    part = ds.ParquetFileFormat().make_fragment(pa.py_buffer(content), partition_expression=where)
    rows = ds.FileSystemDataset([part], schema, ds.ParquetFileFormat()).to_table()
    if missing := [name for name in never_null if rows[name].null_count]:
        raise ValueError(f"no {missing[0]}")
    return rows


@contextmanager
def telling_damage(part: str, remedy: str = LABEL_AGAIN) -> Iterator[None]:
    """Whatever a part's content makes pyarrow or JSON raise becomes a StorageError that names the part."""
    try:
        yield
    except ERRORS_OF_CONTENT as error:
        if is_of_system(error):
            raise
        raise StorageError(f"{part} is damaged ({type(error).__name__}): restore it, or {remedy}") from error


def is_of_system(error: Exception) -> bool:
    """Whether it says that a file cannot be read at all; pyarrow has an OSError for damaged content, too."""
    return isinstance(error, OSError) and error.errno is not None
