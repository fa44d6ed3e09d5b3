"""Where each mask goes below the model's mask folder: no two images share a key, none leaves the folder."""

from __future__ import annotations

import hashlib
import re

import duckdb
import pyarrow as pa

from segpipe.errors import RunError

MAX_COMPONENT_BYTES = 200  # leaves room for ".png" below the 255 bytes of common file systems
MAX_KEY_BYTES = 800  # leaves room for OUTPUT and the model below the 1,024 bytes of S3
_STEM_CHARACTERS = 100
_DIGITS = (8, 16, 64)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# A key "a.png" and a key "a.png/b.png" cannot both be files on a local disk.
_FOLDERS = """
    CREATE OR REPLACE TEMP MACRO png_folders(key) AS list_filter(
        list_transform(range(1, len(string_split(key, '/'))),
                       lambda depth: array_to_string(string_split(key, '/')[1:depth], '/')),
        lambda folder: folder LIKE '%.png')"""
_CONFLICTS = """
    WITH planned_folders AS (
        SELECT row, unnest(png_folders(key)) AS folder FROM planned WHERE key LIKE '%.png/%'),
    taken_folders AS (
        SELECT DISTINCT unnest(png_folders(key)) AS key FROM taken WHERE key LIKE '%.png/%')
    SELECT row FROM planned SEMI JOIN taken USING (key)
    UNION SELECT row FROM planned QUALIFY row_number() OVER (PARTITION BY key ORDER BY row) > 1
    UNION SELECT row FROM planned_folders WHERE folder IN (SELECT key FROM planned UNION ALL FROM taken)
    UNION SELECT row FROM planned SEMI JOIN taken_folders USING (key)
    ORDER BY row"""


def natural_key(image_key: str) -> str | None:
    """The image's own key plus ".png"; None when that could leave the mask folder or not be stored."""
    components = image_key.split("/")
    safe = (
        not any(component in ("", ".", "..") for component in components)
        and not _CONTROL.search(image_key)
        and all(len(component.encode()) <= MAX_COMPONENT_BYTES for component in components)
        and len(image_key.encode()) <= MAX_KEY_BYTES
    )
    return image_key + ".png" if safe else None


def alternative_key(image_key: str, image_uri: str, image_etag: str, digits: int = 8) -> str:
    """A flat key made of the image's key, cleaned and cut, and hex digits of the hash of its identity."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", image_key).strip("._")[-_STEM_CHARACTERS:] or "image"
    identity = hashlib.sha256(f"{image_uri}\0{image_etag}".encode()).hexdigest()
    return f"{stem}~{identity[:digits]}.png"


def assign_mask_keys(
    connection: duckdb.DuckDBPyConnection, images: pa.Table, wanted: list[str | None]
) -> list[str]:
    """One mask key per image: the wanted one, or an alternative where that is None or in the way.

    images has columns image_uri, image_etag, image_key. The connection sees a relation taken(key): masks that
    exist and must stay as they are. The result and `taken` together hold no key twice and no key that is a
    folder of another. Raises RunError in the all but impossible case that no free key is found.
    """
    connection.execute(_FOLDERS)
    columns = (images[name].to_pylist() for name in ("image_key", "image_uri", "image_etag"))
    identities: list[tuple[str, str, str]] = list(zip(*columns, strict=True))
    keys = [
        key if key is not None else alternative_key(*identity)
        for key, identity in zip(wanted, identities, strict=True)
    ]
    for digits in _DIGITS:
        conflicts = _conflicts(connection, keys)
        if not conflicts:
            return keys
        for row in conflicts:
            keys[row] = alternative_key(*identities[row], digits)
    if _conflicts(connection, keys):
        raise RunError(
            f"no free mask name for {identities[conflicts[0]][1]}: rename the image and plan again"
        )
    return keys


def _conflicts(connection: duckdb.DuckDBPyConnection, keys: list[str]) -> list[int]:
    """The rows whose key is taken, doubled, or a folder of another or below one."""
    planned = pa.table({"row": pa.array(range(len(keys)), pa.int64()), "key": pa.array(keys, pa.string())})
    connection.register("planned", planned)
    return [row for (row,) in connection.execute(_CONFLICTS).fetchall()]
