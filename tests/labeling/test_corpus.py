"""Whatever a bucket holds, under whatever keys, becomes a right mask or a failure with its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from corpus import DECODED, all_cases

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.images import decode_image, decode_mask
from segpipe.labeling.run import label_source
from segpipe.manifests.store import read_manifest

MODEL = "aaaaaaaaaaaa"
SETTINGS = LabelSettings(shard_images=100, batch_images=8, fetch_threads=4)
# The fast suite takes the local disk; `make test-corpus` the rest, which costs seconds of requests.
STORAGES = [
    "local",
    pytest.param("memory", marks=pytest.mark.corpus),
    pytest.param("s3", marks=pytest.mark.corpus),
]

LOCAL_KEYS = [
    *("a b.jpg", " leading.jpg", "trailing ", "trailing.", "dots...jpg", "-n", "~", "a\\b.jpg", "C:\\a.jpg"),
    *("ü.jpg", "u\u0308.jpg", "图像.jpg", "\U0001f600.jpg", "‮gpj.exe", "zero\u200bwidth.jpg", "İ.jpg"),
    *(
        "a?b.jpg",
        "a%b.jpg",
        "a%2Fb.jpg",
        "%2e%2e%2fa.jpg",
        "a#b.jpg",
        "a+b.jpg",
        "a*b[0-9].jpg",
        "a:b::c.jpg",
    ),
    *("a&b;c=$d.jpg", "'quoted\".jpg", "<a>|b.jpg", "{a}.jpg", "a,b.jpg", "@a", "s3:a.jpg", "NUL", "masks/a"),
    *("new\nline.jpg", "return\r.jpg", "tab\t.jpg", "bell\x07.jpg", "delete\x7f.jpg", "escape\x1b[2J.jpg"),
    *("same.jpg", "same.JPG", "SAME.jpg", "a.jpg", "a.jpg.png", "a.jpg.png.png", "a", "x.png", "x/y", "x"),
    *(
        "/".join(["k" * 99] * 9) + "/long",
        "l" * 200,
        "m" * 251,
        "ü" * 120,
        "run_date=2020-01-01/a.parquet.jpg",
    ),
]
BUCKET_KEYS = [
    *(
        "../up.jpg",
        "a/../../../up.jpg",
        "./here.jpg",
        "d/./here.jpg",
        "/leading.jpg",
        "//two.jpg",
    ),
    *("d//double.jpg", "n" * 990, "y.jpg/below", "y.jpg", "z.png/below", "z", "z.png", "with-bytes/"),
]


def below(key: str, keys: list[str]) -> bool:
    return any(other.startswith(f"{key}/") for other in keys)


@pytest.fixture(params=STORAGES)
def storage_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    if request.param == "memory":
        fsspec.filesystem("memory").makedirs(f"/{tmp_path.name}")
        return f"memory://{tmp_path.name}"
    return f"s3://{request.getfixturevalue('s3_bucket')}"


@pytest.fixture(params=["local", "memory", "s3"])
def any_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('s3_bucket')}"
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def stored_under(root: str) -> dict[str, str]:
    """Every file's key under the root, listed without segpipe, and the hash of its bytes."""
    if root.startswith("s3://"):
        import boto3

        bucket = boto3.resource("s3").Bucket(root.removeprefix("s3://"))
        return {found.key: _hash(found.get()["Body"].read()) for found in bucket.objects.all()}
    if root.startswith("memory://"):
        files = fsspec.filesystem("memory").store
        head = root.removeprefix("memory:/") + "/"
        return {
            name.removeprefix(head): _hash(file.getvalue()) for name, file in files.items() if head in name
        }
    found = [path for path in Path(root).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): _hash(path.read_bytes()) for path in found}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rows_by_key(output: str, source: str) -> dict[str, dict]:
    rows = read_manifest(output).to_pylist()
    found = {row["image_uri"].removeprefix(f"{source}/"): row for row in rows}
    assert len(found) == len(rows)
    return found


def assert_nothing_else_is_touched(root: str, before: dict[str, str]) -> None:
    """The source is as it was, and all that is new lies below OUTPUT."""
    after = stored_under(root)
    assert {key: after.get(key) for key in before} == before
    assert all(key.startswith("out/") for key in after.keys() - before.keys())


def test_every_case_is_labelled_right_or_fails_with_its_reason(storage_root: str, make_labeler) -> None:
    source, output = (storage.normalise(f"{storage_root}/{name}") for name in ("in", "out"))
    cases = {case.name: case for case in all_cases()}
    for case in cases.values():
        storage.put(f"{source}/{case.name}", case.data)
    before = stored_under(storage_root)
    assert len(before) == len(cases) >= 200
    summary = label_source(source, output, make_labeler(), SETTINGS)
    assert summary.planned == len(cases)
    rows = rows_by_key(output, source)
    assert rows.keys() == cases.keys()
    for name, row in rows.items():
        case = cases[name]
        outcome = row["reason"] if row["decision"] == "failed" else DECODED
        assert outcome in case.outcomes, (name, row["error"])
        if outcome != DECODED:
            assert row["mask_uri"] is None
            assert row["error"].isprintable(), name
            continue
        mask = decode_mask(storage.read_bytes(row["mask_uri"]))
        assert mask.shape == (row["image_height"], row["image_width"])
        exact = case.pixels is not None and case.tolerance == 0
        expected = case.pixels if exact else decode_image(case.data)
        np.testing.assert_array_equal(mask, expected.mean(axis=2) > 127, err_msg=name)
    assert_nothing_else_is_touched(storage_root, before)


def test_every_key_gets_a_mask_of_its_own_below_output(
    any_root: str, make_labeler, picture: Callable[..., bytes]
) -> None:
    source, output = (storage.normalise(f"{any_root}/{name}") for name in ("in", "out"))
    keys = [key for key in LOCAL_KEYS if not below(key, LOCAL_KEYS)]
    if any_root.startswith("s3://"):
        # moto finds no route to a key with a line feed; real servers take it.
        keys = [key for key in LOCAL_KEYS + BUCKET_KEYS if "\n" not in key]
    # Each image has a height of its own, so a mask tells whose it is.
    heights = {key: 5 + number for number, key in enumerate(keys)}
    assert len(heights) == len(keys)
    for key, height in heights.items():
        storage_put(f"{source}/{key}", picture(200, height=height))
    before = stored_under(any_root)
    label_source(source, output, make_labeler(), SETTINGS)
    rows = rows_by_key(output, source)
    assert rows.keys() == heights.keys()
    assert len({row["mask_uri"] for row in rows.values()}) == len(keys)
    for key, row in rows.items():
        assert row["decision"] == "review", (key, row["error"])
        assert row["mask_uri"].startswith(f"{output}/masks/{MODEL}/")
        assert not {"", ".", ".."} & set(row["mask_uri"].removeprefix(f"{output}/").split("/"))
        mask = decode_mask(storage.read_bytes(row["mask_uri"]))
        assert mask.shape == (heights[key], 6)
        assert _hash(storage.read_bytes(row["mask_uri"])) == row["mask_sha256"]
    assert_nothing_else_is_touched(any_root, before)
    assert label_source(source, output, make_labeler(), SETTINGS).planned == 0


def storage_put(uri: str, data: bytes) -> None:
    """A bucket takes any key; s3fs would not write them all."""
    if not uri.startswith("s3://"):
        storage.put(uri, data)
        return
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)
