"""An inventory from a list plans what a listing plans, and never labels an image twice."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.errors import NotFoundError, RunError
from segpipe.labeling.inventory import take_inventory
from segpipe.labeling.inventory_list import DELETED, OBJECT_SCHEMA, OUTSIDE, read_list
from segpipe.labeling.plan import RunPlan, make_plan
from segpipe.labeling.run import label_source
from segpipe.manifests.store import read_manifest
from tests.support.planned import planned_table

# As Amazon's guide shows it; keys are URL-encoded in CSV.
CSV_SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
CSV_ROWS = (
    '"{bucket}","in/a+b%2Bc%C3%BC.jpg","v1","true","false","11","2026-11-22T02:11:15.000Z","e1","STANDARD"\n'
    '"{bucket}","in/a+b%2Bc%C3%BC.jpg","v0","false","false","10","2026-11-20T02:11:15.000Z","e0","STANDARD"\n'
    '"{bucket}","in/gone.jpg","v2","true","true","","2026-11-22T02:11:15.000Z","",""\n'
    '"{bucket}","in/folder/","v4","true","false","0","2026-11-22T02:11:15.000Z","e4","STANDARD"\n'
    '"{bucket}","elsewhere/b.jpg","v3","true","false","12","2026-11-22T02:11:15.000Z","e3","STANDARD"\n'
)


@pytest.fixture
def report(s3_bucket: str) -> Callable[..., str]:
    """(name, data, **fields of manifest.json) -> URL of a report in `s3_bucket` about `s3_bucket`."""

    def put(name: str, data: bytes, **fields: object) -> str:
        key = f"inventory/{s3_bucket}/daily/data/{name}"
        storage.put(f"s3://{s3_bucket}/{key}", data)
        file = {"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}
        manifest = {
            "sourceBucket": s3_bucket,
            "destinationBucket": f"arn:aws:s3:::{s3_bucket}",
            "version": "2016-11-30",
            "creationTimestamp": "1514944800000",
            "fileFormat": "CSV",
            "fileSchema": CSV_SCHEMA,
            "files": [file],
        }
        url = f"s3://{s3_bucket}/inventory/{s3_bucket}/daily/2026-11-23T01-00Z/manifest.json"
        storage.put(url, json.dumps(manifest | fields).encode())
        return url

    return put


def read(url: str, source: str) -> tuple[list[dict], dict[str, int]]:
    skipped: Counter[str] = Counter()
    table = pa.Table.from_batches(read_list(url, source, skipped), OBJECT_SCHEMA)
    return table.to_pylist(), {name: count for name, count in skipped.items() if count}


def test_a_csv_report_gives_current_objects_with_their_keys_decoded(s3_bucket: str, report) -> None:
    url = report("1.csv.gz", gzip.compress(CSV_ROWS.format(bucket=s3_bucket).encode()))
    rows, skipped = read(url, f"s3://{s3_bucket}/in")
    key, uri = "a b+cü.jpg", f"s3://{s3_bucket}/in/a b+cü.jpg"
    known = {"image_etag": "e1", "image_bytes": 11, "storage_class": "STANDARD"}
    assert rows == [{"image_uri": uri, "image_key": key} | known]
    assert skipped == {DELETED: 2, OUTSIDE: 1}


def test_a_parquet_report_gives_its_keys_as_they_are(s3_bucket: str, report, tmp_path: Path) -> None:
    columns = {
        "bucket": [s3_bucket] * 2,
        "key": ["in/a+b%20c.jpg", "in/old.jpg"],
        "is_latest": [True, True],
        "is_delete_marker": [False, True],
        "size": pa.array([5, None], pa.int64()),
        "e_tag": ["e1", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    data = (tmp_path / "1.parquet").read_bytes()
    url = report("1.parquet", data, fileFormat="Parquet", fileSchema="message s3.inventory { ... }")
    rows, skipped = read(url, f"s3://{s3_bucket}/in")
    assert [(row["image_key"], row["image_etag"], row["image_bytes"]) for row in rows] == [
        ("a+b%20c.jpg", "e1", 5)
    ]
    assert skipped == {DELETED: 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sourceBucket": "another"}, "lists bucket another, not s3://"),
        ({"fileFormat": "ORC"}, "has the format ORC, which is not read"),
        ({"fileSchema": "Size, ETag"}, "cannot be read|no columns Bucket and Key"),
        ({"files": "none"}, "is no manifest.json of S3 Inventory"),
    ],
)
def test_a_report_that_does_not_fit_is_refused_in_one_line(s3_bucket: str, report, fields, message) -> None:
    url = report("1.csv.gz", gzip.compress(CSV_ROWS.format(bucket=s3_bucket).encode()), **fields)
    with pytest.raises(RunError, match=message) as error:
        read(url, f"s3://{s3_bucket}/in")
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_a_report_is_refused(s3_bucket: str, report) -> None:
    url = report("1.csv.gz", gzip.compress(CSV_ROWS.format(bucket=s3_bucket).encode()))
    storage.put(f"s3://{s3_bucket}/inventory/{s3_bucket}/daily/data/1.csv.gz", b"other")
    with pytest.raises(RunError, match=r"1\.csv\.gz has the MD5"):
        read(url, f"s3://{s3_bucket}/in")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key,etag,size\na.jpg,e1,3\nb/c d.jpg,,\n", [("a.jpg", "e1", 3), ("b/c d.jpg", None, 0)]),
        ('"URI"\n"/data/in/ü,1.jpg"\n', [("ü,1.jpg", None, 0)]),
        ('Key,ETag\na.jpg,"""e1"""\n', [("a.jpg", "e1", 0)]),
        ("uri\nfile:///data/in/a.jpg\nlocal:///data/in/b.jpg\n", [("a.jpg", None, 0), ("b.jpg", None, 0)]),
        ("uri\nfile:///data/in/../secret.jpg\nfile://data/in/a.jpg\n", []),
        ("uri\n/data/in/../secret.jpg\n/data/other/a.jpg\n/data/in/a.jpg\n", [("a.jpg", None, 0)]),
    ],
)
def test_a_csv_list(tmp_path: Path, text: str, expected: list) -> None:
    for name, data in (("l.csv", text.encode()), ("l.csv.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        rows, _ = read(str(tmp_path / name), "/data/in")
        assert [(row["image_key"], row["image_etag"], row["image_bytes"]) for row in rows] == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.csv", b"name,size\na,1\n", "has no column uri or key, only name, size"),
        ("l.csv", b"key,size\na,many\n", "column of the wrong type"),
        ("l.csv", b"key,size\na,1,2\n", "cannot be read"),
        ("l.csv.gz", b"no gzip", "cannot be read"),
        ("l.parquet", b"no parquet", "cannot be read"),
        ("l.txt", b"a\n", "is neither manifest.json nor one of"),
        ("l.json", b"{}", "is no manifest.json of S3 Inventory"),
    ],
)
def test_a_malformed_list_is_refused_in_one_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RunError, match=message) as error:
        read(str(tmp_path / name), "/data/in")
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_other_spelling_of_an_s3_uri_is_below_its_source(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("uri\ns3a://bucket/in/a.jpg\n")
    (row,), skipped = read(str(tmp_path / "l.csv"), "s3://bucket/in")
    assert (row["image_uri"], skipped.get(OUTSIDE, 0)) == ("s3://bucket/in/a.jpg", 0)


@pytest.mark.parametrize("uri", ["S3://bucket/in/a.jpg", "S3A://bucket/in/a.jpg"])
def test_a_scheme_in_capitals_is_below_its_source_too(tmp_path: Path, uri: str) -> None:
    (tmp_path / "l.csv").write_text(f"uri\n{uri}\n")
    (row,), skipped = read(str(tmp_path / "l.csv"), "s3://bucket/in")
    assert (row["image_uri"], skipped.get(OUTSIDE, 0)) == ("s3://bucket/in/a.jpg", 0)


def test_hadoops_markers_of_folders_are_no_images(tmp_path: Path) -> None:
    uris = ["day_$folder$,0", "full_$folder$,5", "a.jpg,5"]
    (tmp_path / "l.csv").write_text("key,size\n" + "\n".join(uris) + "\n")
    rows, _ = read(str(tmp_path / "l.csv"), "s3://bucket/in")
    assert [row["image_key"] for row in rows] == ["full_$folder$", "a.jpg"]


def test_a_list_without_rows_is_what_is_named_empty(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"an image")
    (tmp_path / "l.csv").write_text("uri\n")
    inventory = take_inventory(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "l.csv"))
    with pytest.raises(RunError, match=r"in the list .*l\.csv \(it is empty\)"):
        list(inventory.objects)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.csv"):
        read(str(tmp_path / "none.csv"), "/data/in")


def plan(source: str, output: str, listed: str | None) -> RunPlan:
    settings = LabelSettings(inventory=listed)
    return make_plan(source, output, "aaaaaaaaaaaa", None, settings, "r", datetime.now(UTC))


def write_list(path: Path, source: str, *, etags: bool = True) -> str:
    found = list(storage.list_objects(source))
    columns = {"key": [item.key for item in found], "size": [item.size for item in found]}
    pq.write_table(pa.table(columns | ({"etag": [item.etag for item in found]} if etags else {})), path)
    return str(path)


def test_a_list_plans_what_the_listing_plans(tmp_path: Path, fill) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    fill(source, 7)
    for name in ("notes.txt", ".hidden.jpg", "x/.thumb/y.png"):
        storage.put(f"{source}/{name}", b"x")
    listed = plan(source, output, write_list(tmp_path / "l.parquet", source))
    live = plan(source, output, None)
    assert planned_table(listed.images).equals(planned_table(live.images))
    assert listed.skipped == live.skipped == {".txt": 1, "hidden": 2}


@pytest.mark.parametrize("etags", [True, False])
def test_a_stale_list_labels_each_image_once_as_it_is_and_says_what_is_gone(
    tmp_path: Path, fill, picture, make_labeler, settings: LabelSettings, etags: bool
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    uris = fill(source, 5)
    listed = settings.model_copy(
        update={"inventory": write_list(tmp_path / "l.parquet", source, etags=etags)}
    )
    storage.put(uris[0], picture(77))  # changed since the list was made
    storage.delete(uris[1])
    first = label_source(source, output, make_labeler(), listed, "r1")
    assert (first.planned, first.failed, first.reasons["storage"]) == (5, 1, 1)
    second = label_source(source, output, make_labeler(), listed, "r2")
    assert (second.planned, second.already_done, second.retried) == (1, 4, 1)
    rows = read_manifest(output, columns=["image_uri", "image_etag", "decision"]).to_pylist()
    done = {row["image_uri"]: row["image_etag"] for row in rows if row["decision"] != "failed"}
    assert len(done) == 4 == len([row for row in rows if row["decision"] != "failed"])
    assert all(etag == storage.etag(uri) for uri, etag in done.items())
