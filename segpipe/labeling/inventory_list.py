"""What lies in a bucket, from a list: an S3 Inventory report, or a Parquet or CSV file with a row per object.

S3 Inventory: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html. A list is
copied to local disk first, so that its checksum is known before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.errors import RunError
from segpipe.redaction import redact
from segpipe.storage.retry import explained
from segpipe.validation import parse_json

OBJECT_SCHEMA = pa.schema(
    [
        ("image_uri", pa.string()),
        ("image_key", pa.string()),
        ("image_etag", pa.string()),
        ("image_bytes", pa.int64()),
        ("storage_class", pa.string()),
    ]
)
OUTSIDE = "outside SOURCE"
DELETED = "deleted or an older version"
_BATCH_ROWS = 50_000
_COPY_BYTES = 8 * 2**20
_MAX_REPORT_BYTES = 64 * 2**20
_FORMATS = (".parquet", ".csv", ".csv.gz")
_COLUMNS = ("uri", "key", "etag", "size", "storage_class")
_S3_COLUMNS = {  # as the CSV schema and as the Parquet schema of S3 Inventory name them
    "bucket": "bucket",
    "key": "key",
    "size": "size",
    "etag": "etag",
    "e_tag": "etag",
    "islatest": "is_latest",
    "is_latest": "is_latest",
    "isdeletemarker": "is_delete_marker",
    "is_delete_marker": "is_delete_marker",
    "storageclass": "storage_class",
    "storage_class": "storage_class",
}
_CLIMBING = r"(?:^|/)\.{0,2}(?:/|$)"

Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class _ListFile:
    """One file of a list; `names` are the columns of a CSV without header, md5 is None when not stated."""

    url: str
    names: list[str] | None = None
    md5: str | None = None


def read_list(url: str, source: str, skipped: Counter[str]) -> Batches:
    """The objects (OBJECT_SCHEMA) that a list has below SOURCE; counts in `skipped` what it leaves out.

    An ETag or storage class that the list does not give is null, a size 0. Raises, as it is read,
    NotFoundError or StorageError if the list cannot be read, RunError if it is malformed, damaged or of
    another bucket than SOURCE.
    """
    url = storage.normalise(url)
    read = _read_report if url.endswith(".json") else _read_file
    for batch in read(url, source, skipped):
        yield _below_source(batch, source, skipped)


def _read_file(url: str, source: str, _skipped: Counter[str]) -> Batches:
    if not url.endswith(_FORMATS):
        raise _malformed(url, f"is neither manifest.json nor one of {', '.join(_FORMATS)}")
    for batch in _rows(_ListFile(url)):
        columns = _columns(batch, url)
        known = {name: columns[name] for name in _COLUMNS if name in columns}
        if "uri" not in known and "key" not in known:
            raise _malformed(url, f"has no column uri or key, only {', '.join(batch.schema.names)}")
        named = _text(known.get("uri", known.get("key")), url)
        uris = _normalised(named) if "uri" in known else _joined(source, named)
        yield _objects(uris, known, url)


def _read_report(url: str, source: str, skipped: Counter[str]) -> Batches:
    """The current objects of an S3 Inventory report."""
    report = _report(url)
    if not f"{source}/".startswith(f"s3://{report['sourceBucket']}/"):
        raise RunError(
            f"{url} lists bucket {report['sourceBucket']}, not {redact(source)}: "
            "give the report of SOURCE's bucket"
        )
    is_csv = report["fileFormat"].lower() == "csv"
    for file in _report_files(report, is_csv):
        for batch in _rows(file):
            yield _current_objects(batch, file.url, is_csv, skipped)


def _report(url: str) -> dict:
    """manifest.json, checked; RunError when it is none."""
    try:
        report = parse_json(storage.read(url, _MAX_REPORT_BYTES).data)
        json.dumps(report, ensure_ascii=False).encode()  # half a character is in no bucket's name
        for name in ("sourceBucket", "destinationBucket", "fileFormat", "fileSchema"):
            if not isinstance(report[name], str):
                raise TypeError(f"{name} is no text")
        if not all(isinstance(file["key"], str) for file in report["files"]):
            raise TypeError("a file's key is no text")
        if not all(isinstance(file.get("MD5checksum"), str | None) for file in report["files"]):
            raise TypeError("a file's MD5checksum is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _malformed(
            url, f"is no manifest.json of S3 Inventory ({type(error).__name__}: {error})"
        ) from None
    if report["fileFormat"].lower() not in ("csv", "parquet"):
        raise _malformed(
            url, f"has the format {report['fileFormat']}, which is not read; choose Parquet or CSV"
        )
    return report


def _report_files(report: dict, is_csv: bool) -> Iterator[_ListFile]:
    bucket = report["destinationBucket"].rpartition(":")[2]  # an ARN, arn:aws:s3:::bucket
    names = [name.strip() for name in report["fileSchema"].split(",")] if is_csv else None
    for file in report["files"]:
        yield _ListFile(f"s3://{bucket}/{file['key']}", names, file.get("MD5checksum"))


def _current_objects(batch: pa.RecordBatch, url: str, is_csv: bool, skipped: Counter[str]) -> pa.RecordBatch:
    columns = {_S3_COLUMNS.get(name, name): column for name, column in _columns(batch, url).items()}
    if not {"bucket", "key"} <= columns.keys():
        raise _malformed(url, f"has no columns Bucket and Key, only {', '.join(batch.schema.names)}")
    latest = _flags(columns.get("is_latest"), batch.num_rows, url, missing=True)
    deleted = _flags(columns.get("is_delete_marker"), batch.num_rows, url, missing=False)
    current = pc.and_not(latest, deleted)
    skipped[DELETED] += batch.num_rows - current.true_count
    columns = {name: column.filter(current) for name, column in columns.items()}
    keys = _text(columns["key"], url)
    uris = _element_wise("s3://", _text(columns["bucket"], url), "/", _decoded(keys) if is_csv else keys)
    return _objects(uris, columns, url)


def _columns(batch: pa.RecordBatch, url: str) -> dict[str, pa.Array]:
    """By their names in small letters."""
    try:
        names = [name.lower() for name in batch.schema.names]
    except UnicodeDecodeError as error:
        raise _malformed(url, f"has a column whose name is no UTF-8 ({error})") from None
    if len(set(names)) < len(names):
        raise _malformed(url, f"names a column twice ({', '.join(names)})")
    return dict(zip(names, batch.columns, strict=True))


def _flags(column: pa.Array | None, n_rows: int, url: str, *, missing: bool) -> pa.Array:
    """A column of true and false, as booleans or text; `missing` where the report does not say."""
    if column is None:
        return pa.array([missing] * n_rows, pa.bool_())
    text = pc.utf8_lower(_cast(column, pa.string(), url))
    return pc.if_else(
        pc.fill_null(pc.equal(text, "true" if not missing else "false"), False), not missing, missing
    )


def _decoded(keys: pa.Array) -> pa.Array:
    """The keys of a CSV report are URL-encoded, a space as +."""
    encoded = pc.match_substring_regex(keys, "[%+]")
    plain = [unquote_plus(key) for key in keys.filter(encoded).to_pylist()]
    return pc.replace_with_mask(keys, encoded, pa.array(plain, pa.string()))


def _objects(uris: pa.Array, columns: Mapping[str, pa.Array], url: str) -> pa.RecordBatch:
    """OBJECT_SCHEMA of the columns etag, size and storage_class, as far as there are any."""

    def column(name: str, kind: pa.DataType) -> pa.Array:
        return _cast(columns[name], kind, url) if name in columns else pa.nulls(len(uris), kind)

    etags, classes = (
        pc.if_else(pc.equal(text, ""), None, text)
        for text in (pc.utf8_trim(column(name, pa.string()), '" ') for name in ("etag", "storage_class"))
    )
    sizes = pc.fill_null(column("size", pa.int64()), 0)
    return pa.record_batch([uris, uris, etags, sizes, classes], schema=OBJECT_SCHEMA)


def _below_source(batch: pa.RecordBatch, source: str, skipped: Counter[str]) -> pa.RecordBatch:
    """The rows below SOURCE, with their keys; on a disk none that climbs out of it."""
    root = f"{source.rstrip('/')}/"
    inside = pc.starts_with(batch["image_uri"], root)
    keys = pc.utf8_slice_codeunits(batch["image_uri"], start=len(root))
    if "://" not in source:
        inside = pc.and_(inside, pc.invert(pc.match_substring_regex(keys, _CLIMBING)))
    is_marker = pc.match_substring_regex(batch["image_uri"], r"(?:/|_\$folder\$)$")
    is_folder = pc.and_(is_marker, pc.equal(batch["image_bytes"], 0))
    skipped[OUTSIDE] += batch.num_rows - pc.sum(inside).as_py() if batch.num_rows else 0
    columns = [batch["image_uri"], keys, *(batch[name] for name in OBJECT_SCHEMA.names[2:])]
    found = pa.record_batch(columns, schema=OBJECT_SCHEMA)
    return found.filter(
        pc.and_not(inside, is_folder)
    )  # no object: how consoles and Hadoop make a folder seen


def _normalised(uris: pa.Array) -> pa.Array:
    """With the schemes as `storage.normalise` spells them."""
    return pc.replace_substring_regex(
        pc.replace_substring_regex(uris, "(?i)^s3a?://", "s3://"), "(?i)^(file|local):///", "/"
    )


def _joined(source: str, keys: pa.Array) -> pa.Array:
    return _element_wise(f"{source.rstrip('/')}/", keys)


def _element_wise(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _text(column: pa.Array, url: str) -> pa.Array:
    text = _cast(column, pa.string(), url)
    if text.null_count:
        raise _malformed(url, "has a row without a name")
    return text


def _cast(column: pa.Array, kind: pa.DataType, url: str) -> pa.Array:
    try:
        if kind == pa.int64() and pa.types.is_string(column.type):
            column = pc.if_else(pc.equal(column, ""), None, column)
        cast = column.cast(kind)
        cast.validate(
            full=True
        )  # a file may hold anything as text, and casting text to text looks at nothing
        return cast
    except pa.ArrowException as error:
        raise _malformed(url, f"has a column of the wrong type ({' '.join(str(error).split())})") from None


def _rows(file: _ListFile) -> Batches:
    """The rows of one file in batches, all columns of a CSV as text."""
    with _local_copy(file) as path:
        batches = _parquet_batches(path) if file.url.endswith(".parquet") else _csv_batches(path, file.names)
        yield from _readable(batches, file.url)


def _readable(batches: Batches, url: str) -> Batches:
    try:
        yield from batches
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise _malformed(url, f"cannot be read ({' '.join(str(error).split())})") from None


def _parquet_batches(path: Path) -> Batches:
    file = pq.ParquetFile(path)
    wanted = {*_COLUMNS, *_S3_COLUMNS}
    names = [name for name in file.schema_arrow.names if name.lower() in wanted]
    yield from file.iter_batches(_BATCH_ROWS, columns=names or None)


def _csv_batches(path: Path, names: list[str] | None) -> Batches:
    compression = "gzip" if path.name.endswith(".gz") else None
    with pa.input_stream(path, compression=compression) as stream:
        read = pyarrow.csv.ReadOptions(column_names=names, block_size=_COPY_BYTES)
        if names is None:
            with pa.input_stream(path, compression=compression) as first:
                names = _header(first)
        text = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        )
        yield from pyarrow.csv.open_csv(stream, read, convert_options=text)


def _header(stream: pa.NativeFile) -> list[str]:
    """The names in the first line of a CSV."""
    line = stream.read(_COPY_BYTES).split(b"\n", 1)[0].decode().strip()
    return [name.strip().strip('"') for name in line.split(",")]


@contextmanager
def _local_copy(file: _ListFile) -> Iterator[Path]:
    """The file on local disk, its checksum verified."""
    with tempfile.TemporaryDirectory(prefix="segpipe-") as folder:
        path = Path(folder) / ("list.gz" if file.url.endswith(".gz") else "list")
        with explained(file.url):
            digest = _copy(file.url, path)
        if file.md5 is not None and digest != file.md5.lower():
            raise _malformed(file.url, f"has the MD5 {digest}, not {file.md5} as its manifest says")
        yield path


def _copy(url: str, path: Path) -> str:
    """The MD5 of what was copied, in hex."""
    filesystem, name = storage.arrow_filesystem(url)
    digest = hashlib.md5(usedforsecurity=False)
    with filesystem.open_input_file(name) as remote, path.open("wb") as copy:
        while block := remote.read(_COPY_BYTES):
            digest.update(block)
            copy.write(block)
    return digest.hexdigest()


def _malformed(url: str, reason: str) -> RunError:
    return RunError(redact(f"inventory {url} {reason}: mend it, or leave --inventory out to list SOURCE"))
