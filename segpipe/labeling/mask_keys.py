"""Where each mask goes below the model's mask folder: no two images share a key, none leaves the folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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
# 64 bits stand for a name: two names that meet by chance get an alternative without need, and no more.
_IN_USE = """
    CREATE OR REPLACE TABLE in_use AS SELECT DISTINCT hash(stored_name(key)) AS name FROM taken;
    CREATE OR REPLACE TABLE folders_in_use AS
    SELECT DISTINCT hash(unnest(png_folders(stored_name(key)))) AS name FROM taken
    WHERE stored_name(key) LIKE '%.png/%'"""
_ALTERNATIVE = """
    CREATE OR REPLACE TEMP MACRO alternative(stem, image_uri, image_etag, digits) AS
        coalesce(nullif(right(trim(regexp_replace(stem, '[^A-Za-z0-9._-]+', '_', 'g'), '._'), $length), ''),
                 'image')
        || '~' || left(sha256(image_uri || chr(0) || image_etag), digits) || '.png'"""
_UNSAFE = """
    CREATE OR REPLACE TABLE chosen AS
    SELECT row, alternative(stem, image_uri, image_etag, $digits) AS mask_key FROM images
    WHERE mask_key IS NULL ORDER BY row"""
_NAMES = """
    CREATE OR REPLACE TABLE names AS
    SELECT row, hash(stored_name(coalesce(chosen.mask_key, images.mask_key))) AS name
    FROM images LEFT JOIN chosen USING (row);
    CREATE OR REPLACE TABLE folders AS
    SELECT row, hash(unnest(png_folders(name))) AS name
    FROM (SELECT row, stored_name(coalesce(chosen.mask_key, images.mask_key)) AS name
          FROM images LEFT JOIN chosen USING (row))
    WHERE name LIKE '%.png/%'"""
_CONFLICTS = """
    CREATE OR REPLACE TABLE conflicts AS
    WITH doubled AS (SELECT name, min(row) AS first_row FROM names GROUP BY name HAVING count(*) > 1),
    files_below AS (SELECT DISTINCT name FROM names SEMI JOIN folders USING (name))
    SELECT row FROM names SEMI JOIN in_use USING (name)
    UNION SELECT row FROM names JOIN doubled USING (name) WHERE row <> first_row
    UNION SELECT row FROM folders SEMI JOIN files_below USING (name)
    UNION SELECT row FROM folders SEMI JOIN in_use USING (name)
    UNION SELECT row FROM names SEMI JOIN folders_in_use USING (name)"""
_REPLACED = """
    CREATE OR REPLACE TABLE chosen AS
    SELECT row, mask_key FROM chosen ANTI JOIN conflicts USING (row)
    UNION ALL
    SELECT row, alternative(stem, image_uri, image_etag, $digits) FROM images SEMI JOIN conflicts USING (row)
    ORDER BY row"""
_CHOSEN = "SELECT row, mask_key FROM chosen WHERE row >= $first AND row < $end ORDER BY row"


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


def natural_keys(image_keys: pa.ChunkedArray) -> pa.Array:
    """`natural_key` of each: plain keys without a Python object for each, the others one by one."""
    keys = _one_array(image_keys)
    plain = pc.and_(
        pc.match_substring_regex(keys, _PLAIN), pc.less_equal(pc.binary_length(keys), MAX_PLAIN_BYTES)
    )
    others = [natural_key(key) for key in keys.filter(pc.invert(plain)).to_pylist()]
    natural = pc.binary_join_element_wise(keys, ".png", "")
    return pc.replace_with_mask(natural, pc.invert(plain), pa.array(others, pa.string()))


def choose_mask_keys(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the table `chosen` (row, mask_key): another mask key where an image's own is null or in the way.

    It is a flat key of the stem, cleaned and cut, and hex digits of the hash of the image's identity. The
    connection has what define_names makes, images (row, stem, image_uri, image_etag, mask_key), counted from
    0, and taken (key): masks that exist and must stay as they are. The keys that come of it
    and `taken` together hold no stored name twice and none that is a folder of another. Raises RunError in
    the all but impossible case that no free key is found.
    """
    connection.execute(_IN_USE)
    connection.execute(_ALTERNATIVE.replace("$length", str(_STEM_CHARACTERS)))
    connection.execute(_UNSAFE, {"digits": _DIGITS[0]})
    for digits in _DIGITS:
        if not _find_conflicts(connection):
            return
        connection.execute(_REPLACED, {"digits": digits})
    if _find_conflicts(connection):
        (uri,) = connection.execute(
            "SELECT image_uri FROM images SEMI JOIN conflicts USING (row) LIMIT 1"
        ).fetchall()[0]
        raise RunError(f"no free mask name for {uri}: rename the image and plan again")


def _find_conflicts(connection: duckdb.DuckDBPyConnection) -> int:
    """Make the table `conflicts` (row): whose key is taken, doubled, or a folder of another or below one."""
    connection.execute(_NAMES)
    connection.execute(_CONFLICTS)
    ((count,),) = connection.execute("SELECT count(*) FROM conflicts").fetchall()
    return int(count)


def with_chosen(connection: duckdb.DuckDBPyConnection, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The images, in the order of their rows, with the mask keys that `choose_mask_keys` has chosen."""
    first = 0
    for table in tables:
        rows = {"first": first, "end": first + table.num_rows}
        chosen = connection.sql(_CHOSEN, params=rows).to_arrow_table()
        replaced = np.zeros(table.num_rows, bool)
        replaced[chosen["row"].to_numpy() - first] = True
        keys = pc.replace_with_mask(
            table["mask_key"], pa.array(replaced), chosen["mask_key"].combine_chunks()
        )
        yield table.set_column(table.schema.names.index("mask_key"), "mask_key", keys)
        first += table.num_rows


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
