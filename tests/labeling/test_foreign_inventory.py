"""Whatever an inventory holds: objects that a run can plan, or one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_text import SHORT, changed, damaged, is_one_line
from hypothesis import example, given
from hypothesis import strategies as st

from segpipe import storage
from segpipe.errors import SegpipeError
from segpipe.labeling.inventory_list import OBJECT_SCHEMA, read_list

ROOT = "memory://foreign-inventory"
SOURCE = "memory://raw"
CSV = b'uri,etag,size,storage_class\nmemory://raw/a.jpg,"e1",11,STANDARD\nmemory://raw/b c.jpg,,,\n'
S3_CSV = b'"bucket","in/a+b%2Bc.jpg","true","false","11","e1"\n"bucket","in/gone.jpg","true","true","",""\n'
TABLE = {
    "bucket": ["raw", "raw"],
    "key": ["a", "in/b c.jpg"],
    "is_latest": [True, None],
    "is_delete_marker": [False, True],
    "size": [3, None],
    "e_tag": ["e1", None],
    "storage_class": ["GLACIER", ""],
}
KINDS = [
    *(
        pa.string(),
        pa.binary(),
        pa.large_string(),
        pa.int64(),
        pa.uint64(),
        pa.float64(),
        pa.bool_(),
        pa.null(),
    ),
    *(pa.list_(pa.string()), pa.struct([("a", pa.string())]), pa.dictionary(pa.int32(), pa.string())),
    *(pa.timestamp("us"), pa.decimal128(38, 2)),
]


def read_all(url: str, source: str = SOURCE) -> None:
    try:
        table = pa.Table.from_batches(read_list(url, source, Counter()), OBJECT_SCHEMA)
        table.validate(full=True)
    except SegpipeError as error:
        assert is_one_line(error)  # noqa: PT017 - most inputs are wrong, not all
        return
    assert all(row["image_uri"] == f"{source}/{row['image_key']}" for row in table.to_pylist())


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, **options)
    return content.getvalue()


@SHORT
@given(st.sampled_from(["csv", "csv.gz"]), damaged(CSV), st.booleans())
@example("csv", b"uri,uri\na,b\n", False)
@example("csv", b"uri,size\n", False)
@example("csv", b"uri,\x80\nmemory://raw/a,1\n", False)
@example("csv", b"\n\x80ri,etag\na,b\n", False)
@example("csv", b"", False)
@example("csv", b"x" * 9_000_000, False)
@example("csv", b"uri\nmemory://raw/\xff.jpg\n", False)
@example("csv", b'uri,size\nmemory://raw/"a\n', False)
@example("csv.gz", b"uri\n" + b"x" * 50_000_000, True)
def test_a_list_in_csv(ending: str, content: bytes, is_packed: bool) -> None:
    packed = gzip.compress(content, 1) if is_packed and ending.endswith("gz") else content
    storage.put(url := f"{ROOT}/list.{ending}", packed)
    read_all(url)


@SHORT
@given(damaged(gzip.compress(CSV, mtime=0)))
def test_a_damaged_gzip(content: bytes) -> None:
    storage.put(url := f"{ROOT}/list.csv.gz", content)
    read_all(url)


@SHORT
@given(damaged(parquet({"uri": ["memory://raw/a.jpg"] * 3, "size": [1, 2, None], "etag": ["e", "", None]})))
def test_a_damaged_parquet(content: bytes) -> None:
    storage.put(url := f"{ROOT}/list.parquet", content)
    read_all(url)


def arrays(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Two values of the type, as far as it takes them."""
    values = [
        None,
        "memory://raw/a",
        "a",
        b"\xff",
        1,
        -1,
        2**63,
        1.5,
        True,
        ["a"],
        {"a": "b"},
        "\0",
        "",
        "true",
    ]

    def made(chosen: list[Any]) -> pa.Array:
        try:
            return pa.array(chosen, kind)
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            return pa.nulls(2, kind)

    return st.lists(st.sampled_from(values), min_size=2, max_size=2).map(made)


def columns_of(content: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the columns in another type or of another name."""
    odd = st.sampled_from(KINDS).flatmap(arrays)
    names = st.sampled_from([*content, "uri", "URI", "Key", "etag", "other"])
    return st.dictionaries(names, odd, max_size=3).map(lambda changes: content | changes)


# Such a column can be written, and no reader looks at it.
NO_TEXT = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff%\xfe", b"a"]).buffers())


@SHORT
@given(columns_of({"uri": ["memory://raw/a", "memory://raw/b"], "size": [1, 2], "etag": ["e", "f"]}))
@example({"uri": NO_TEXT})
@example({"key": NO_TEXT})
@example({"uri": ["memory://raw/a", "b"], "etag": NO_TEXT})
@example({"uri": pa.array([], pa.string())})
def test_a_list_in_parquet(columns: dict[str, Any]) -> None:
    storage.put(url := f"{ROOT}/list.parquet", parquet(columns))
    read_all(url)


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> str:
    """A bucket that these reports are about and lie in."""
    import boto3

    boto3.client("s3").create_bucket(Bucket="foreign-inventory")
    return "foreign-inventory"


def manifest(bucket: str, key: str, content: bytes, **fields: Any) -> dict[str, Any]:
    return {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag",
        "files": [{"key": key, "size": len(content), "MD5checksum": hashlib.md5(content).hexdigest()}],
    } | fields


def report(bucket: str, key: str, content: bytes, **fields: Any) -> str:
    storage.put(f"s3://{bucket}/{key}", content)
    storage.put(url := f"{ROOT}/manifest.json", json.dumps(manifest(bucket, key, content, **fields)).encode())
    return url


MANIFEST = manifest("foreign-inventory", "1.csv", S3_CSV)


@SHORT
@given(changed(MANIFEST))
@example("[" * 100_000)
@example(MANIFEST | {"files": [{"key": "1.csv", "MD5checksum": 3}]})
@example(
    MANIFEST | {"files": [{"key": key} for key in ["", "..", "a/..", "a\0b", "x" * 300, "\ud800", "a//b"]]}
)
@example(MANIFEST | {"files": [{"key": ""}]})
@example(MANIFEST | {"files": [{"key": "a/.."}]})
@example(MANIFEST | {"files": [{"key": "a\0b"}]})
@example(MANIFEST | {"files": [{"key": "x" * 300}]})
@example(MANIFEST | {"files": [{"key": "\ud800"}]})
@example(MANIFEST | {"destinationBucket": ""})
@example(MANIFEST | {"destinationBucket": "arn:aws:s3:::\ud800"})
@example(MANIFEST | {"fileSchema": "Bucket, Bucket, Key, Key, Size, ETag"})
@example(MANIFEST | {"fileSchema": ""})
@example(MANIFEST | {"fileSchema": "\ud800, Bucket, Key, Size, ETag, x"})
def test_a_reports_manifest(bucket: str, content: Any) -> None:
    storage.put(f"s3://{bucket}/1.csv", S3_CSV)
    text = content if isinstance(content, str) else json.dumps(content)
    storage.put(url := f"{ROOT}/manifest.json", text.encode(errors="surrogatepass"))
    read_all(url, f"s3://{bucket}")


@SHORT
@given(damaged(S3_CSV))
@example(b"")
@example(b"\n")
@example(S3_CSV.replace(b"%2B", b"%ff%00%1b"))
def test_a_reports_csv(bucket: str, content: bytes) -> None:
    read_all(report(bucket, "1.csv", content), f"s3://{bucket}")


@SHORT
@given(columns_of(TABLE))
@example({name: pa.array([], pa.string()) for name in TABLE})
@example(TABLE | {"is_latest": NO_TEXT})
@example(TABLE | {"key": NO_TEXT})
@example(TABLE | {"is_latest": pa.array([["a"], None])})
def test_a_reports_parquet(bucket: str, columns: dict[str, Any]) -> None:
    url = report(bucket, "1.parquet", parquet(columns), fileFormat="Parquet")
    read_all(url, f"s3://{bucket}")
