"""Where each mask goes below the model's mask folder: no two images share a key, none leaves the folder."""

from __future__ import annotations

import hashlib
import re

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segpipe.addresses import is_local
from segpipe.errors import RunError

MAX_COMPONENT_BYTES = 200  # leaves room for ".png" below the 255 bytes of common file systems
MAX_KEY_BYTES = 800  # leaves room for OUTPUT and the model below the 1,024 bytes of S3
MAX_PLAIN_BYTES = min(MAX_COMPONENT_BYTES, MAX_KEY_BYTES)
_PLAIN = r"^(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*$"  # surely safe, by RE2
_STEM_CHARACTERS = 100
_DIGITS = (8, 16, 64)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VERSION = "?versionId="  # s3fs reads what follows as the version of an object

# A key "a.png" and a key "a.png/b.png" cannot both be files on a local disk.
_PNG_FOLDERS = """
    CREATE OR REPLACE TEMP MACRO png_folders(key) AS list_filter(
        list_transform(range(1, len(string_split(key, '/'))),
                       lambda depth: array_to_string(string_split(key, '/')[1:depth], '/')),
        lambda folder: folder LIKE '%.png')"""
_NAME_IN_BUCKET = "CREATE OR REPLACE TEMP MACRO stored_name(key) AS key"
# What macOS, Windows and many shares take for one name; ss is how they fold a sharp s.
_NAME_ON_DISK = """
    CREATE OR REPLACE TEMP MACRO stored_name(key) AS
        nfc_normalize(replace(lower(upper(nfc_normalize(key))), 'ß', 'ss'))"""
_CONFLICTS = """
    WITH planned AS (SELECT row, stored_name(key) AS key FROM planned_keys),
    in_use AS (SELECT DISTINCT stored_name(key) AS key FROM taken),
    doubled AS (SELECT key, min(row) AS first_row FROM planned GROUP BY key HAVING count(*) > 1),
    planned_folders AS (
        SELECT row, unnest(png_folders(key)) AS folder FROM planned WHERE key LIKE '%.png/%'),
    taken_folders AS (
        SELECT DISTINCT unnest(png_folders(key)) AS key FROM in_use WHERE key LIKE '%.png/%')
    SELECT row FROM planned SEMI JOIN in_use USING (key)
    UNION SELECT row FROM planned JOIN doubled USING (key) WHERE row <> first_row
    UNION SELECT row FROM planned_folders SEMI JOIN planned ON folder = planned.key
    UNION SELECT row FROM planned_folders SEMI JOIN in_use ON folder = in_use.key
    UNION SELECT row FROM planned SEMI JOIN taken_folders USING (key)
    ORDER BY row"""


def define_names(connection: duckdb.DuckDBPyConnection, output: str) -> None:
    """Make the macros png_folders(key), and stored_name(key): the same for two keys that OUTPUT may not tell
    apart. A bucket tells all keys apart; a disk may fold case and Unicode's forms."""
    connection.execute(_PNG_FOLDERS)
    connection.execute(_NAME_ON_DISK if is_local(output) else _NAME_IN_BUCKET)


def natural_key(image_key: str) -> str | None:
    """The image's own key plus ".png"; None when that could leave the mask folder or not be stored."""
    components = image_key.split("/")
    safe = (
        not any(component in ("", ".", "..") for component in components)
        and not _CONTROL.search(image_key)
        and _VERSION not in image_key
        and all(len(component.encode()) <= MAX_COMPONENT_BYTES for component in components)
        and len(image_key.encode()) <= MAX_KEY_BYTES
    )
    return image_key + ".png" if safe else None


def alternative_key(image_key: str, image_uri: str, image_etag: str, digits: int = 8) -> str:
    """A flat key made of the image's key, cleaned and cut, and hex digits of the hash of its identity."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", image_key).strip("._")[-_STEM_CHARACTERS:] or "image"
    identity = hashlib.sha256(f"{image_uri}\0{image_etag}".encode()).hexdigest()
    return f"{stem}~{identity[:digits]}.png"


def natural_keys(image_keys: pa.ChunkedArray) -> pa.Array:
    """`natural_key` of each: plain keys without a Python object for each, the others one by one."""
    keys = _one_array(image_keys)
    plain = pc.and_(
        pc.match_substring_regex(keys, _PLAIN), pc.less_equal(pc.binary_length(keys), MAX_PLAIN_BYTES)
    )
    others = [natural_key(key) for key in keys.filter(pc.invert(plain)).to_pylist()]
    natural = pc.binary_join_element_wise(keys, ".png", "")
    return pc.replace_with_mask(natural, pc.invert(plain), pa.array(others, pa.string()))


def assign_mask_keys(connection: duckdb.DuckDBPyConnection, images: pa.Table, wanted: pa.Array) -> pa.Array:
    """One mask key per image: the wanted one, or an alternative where that is null or in the way.

    images has columns image_uri, image_etag, image_key. The connection has what define_names makes, and a
    relation taken(key): masks that exist and must stay as they are. The result and `taken` together hold no
    stored name twice and none that is a folder of another. Raises RunError in the all but impossible case
    that no free key is found.
    """
    keys = _with_alternatives(wanted, np.flatnonzero(wanted.is_null()), images, _DIGITS[0])
    for digits in _DIGITS:
        conflicts = _conflicts(connection, keys)
        if not len(conflicts):
            return keys
        keys = _with_alternatives(keys, conflicts, images, digits)
    if len(conflicts := _conflicts(connection, keys)):
        uri = images["image_uri"][int(conflicts[0])]
        raise RunError(f"no free mask name for {uri}: rename the image and plan again")
    return keys


def _with_alternatives(keys: pa.Array, rows: np.ndarray, images: pa.Table, digits: int) -> pa.Array:
    """The keys with an alternative in each of these rows (ascending)."""
    if not len(rows):
        return keys
    replaced = np.zeros(len(keys), bool)
    replaced[rows] = True
    few = images.select(["image_key", "image_uri", "image_etag"]).take(rows).to_pylist()
    alternatives = [alternative_key(**identity, digits=digits) for identity in few]
    return pc.replace_with_mask(keys, pa.array(replaced), pa.array(alternatives, pa.string()))


def _conflicts(connection: duckdb.DuckDBPyConnection, keys: pa.Array) -> np.ndarray:
    """The rows, ascending, whose key is taken, doubled, or a folder of another or below one."""
    planned = pa.table({"row": pa.array(np.arange(len(keys))), "key": keys})
    connection.register("planned_keys", planned)
    return connection.execute(_CONFLICTS).fetchnumpy()["row"]


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
