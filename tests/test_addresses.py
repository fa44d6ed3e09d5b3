"""An address that lost something is refused with what was probably meant, never taken for a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segpipe import cli, storage
from segpipe.addresses import folded, normalise
from segpipe.config import DoctorSettings, TrainSettings
from segpipe.console import Invocation
from segpipe.errors import AddressError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (str(Path("s3://bucket/x")), "did you mean s3://bucket/x?"),
        (str(Path("s3://bucket/x").absolute()), "did you mean s3://bucket/x?"),
        ("s3:bucket/x", "did you mean s3://bucket/x?"),
        ("S3:/bucket/x", "did you mean s3://bucket/x?"),
        ("s3//bucket/x", "did you mean s3://bucket/x?"),
        ("s3:\\\\bucket\\x", "did you mean s3://bucket/x?"),
        ("s3:///bucket/x", "did you mean s3://bucket/x?"),
        ("'s3://bucket/x'", "did you mean s3://bucket/x?"),
        ("./s3:/bucket/x", "did you mean s3://bucket/x?"),
        ("gs:/bucket", "did you mean gs://bucket?"),
        ("https:/host/x", "did you mean https://host/x?"),
        ("file:/x/y", "did you mean /x/y?"),
        ("file://x/y", "give file:///x/y or x/y"),
        ("s3::/bucket", "did you mean s3://bucket?"),
        ("s3://bucket\\raw", "did you mean s3://bucket/raw?"),
        ("raw\\a", "did you mean raw/a?"),
        ("C:\\raw", "Windows path"),
        ("c:/raw", "Windows path"),
        ("\\\\server\\raw", "Windows path"),
        ("s3://", "names no folder"),
        ("s3:///", "names no bucket"),
        ("", "names no folder"),
        (" s3://bucket", "spaces around it"),
        ("s3://bucket/x ", "spaces around it"),
        ("s3://bucket/a\x1b[31m", "control characters"),
        ("/raw/a\nb", "control characters"),
        ("arn:aws:s3:::bucket/x", "is an ARN; give s3://bucket/folder"),
        ("s3://arn:aws:s3:us-east-1:1:accesspoint/a/x", "for an access point s3://its-alias/folder"),
    ],
)
def test_what_is_mistyped_says_what_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(AddressError) as caught:
        normalise(typed)
    assert meant in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("S3://Bucket/x/", "s3://Bucket/x"),
        ("s3a://bucket", "s3://bucket"),
        ("s3://bucket/a:b//c", "s3://bucket/a:b//c"),
        ("s3://bucket/s3:/x", "s3://bucket/s3:/x"),
        ("memory:///x", "memory:///x"),
        ("/data/a:b", "/data/a:b"),
        ("/data/12:30/x", "/data/12:30/x"),
        ("/s3/x", "/s3/x"),
        ("/data//x", "/data/x"),
        ("/data/box:/x", "/data/box:/x"),
    ],
)
def test_what_is_odd_and_right_is_kept(typed: str, kept: str) -> None:
    assert normalise(typed) == kept


@pytest.mark.parametrize("name", ["local//x", "data//x", "s3", "s3/x", "run:1", "file", "memory/x"])
def test_plain_names_of_folders_stay_names_of_folders(name: str, tmp_path: Path) -> None:
    assert normalise(name) == os.path.abspath(name)


@given(st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from(["s3:/", "s3:", "file:/", "gs:/"]))
def test_nothing_behind_a_broken_scheme_is_a_path(rest: str, scheme: str) -> None:
    if not rest.startswith("/"):
        with pytest.raises(AddressError):
            normalise(scheme + rest)


MISTYPED = "s3:/bucket/x"


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", MISTYPED, "{out}", "--model", "{model}"],
        ["label", "{raw}", MISTYPED, "--model", "{model}"],
        ["label", "{raw}", "{out}", "--model", MISTYPED],
        ["label", "{raw}", "{out}", "--model", "{model}", "--inventory", MISTYPED],
        ["plan", MISTYPED, "{out}", "--model", "{model}"],
        ["plan", "{raw}", MISTYPED, "--model", "{model}"],
        ["query", MISTYPED, "SELECT 1"],
        ["compact", MISTYPED],
        ["report", MISTYPED],
        ["audit", MISTYPED],
        ["export", MISTYPED, "{out}", "--format", "coco"],
        ["export", "{out}", MISTYPED, "--format", "coco"],
        ["import", MISTYPED, "{out}", "--format", "voc"],
        ["import", "{raw}", MISTYPED, "--format", "voc"],
        ["review", "list", MISTYPED],
        ["rollback", MISTYPED],
        ["train", "--data", MISTYPED, "--model", "{out}"],
        ["train", "--data", "{raw}", "--model", MISTYPED],
        ["train", "--data", "{raw}", "--model", "{out}", "--corrections", MISTYPED],
        ["evaluate", "--model", "{model}", "--data", MISTYPED, "--split", "val"],
        ["evaluate", "--model", "{model}", "--data", "{raw}", "--split", "val", "--report", MISTYPED],
        ["promote", "--line", MISTYPED, "--candidate", "{model}", "--data", "{raw}", "--split", "val"],
        ["doctor", "--output", MISTYPED],
        ["doctor", "--sources", MISTYPED],
    ],
)
def test_every_command_refuses_a_mistyped_address(
    arguments: list[str], trained_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(b"no image")
    places = {"out": str(tmp_path / "out"), "raw": str(tmp_path / "raw"), "model": trained_model}
    done = CliRunner().invoke(
        cli.cli, [argument.format(**places) for argument in arguments], obj=Invocation()
    )
    assert done.exit_code != 0
    assert "did you mean s3://bucket/x?" in f"{done.output} {done.exception}"
    assert sorted(os.listdir(tmp_path)) == ["raw"]


def test_settings_refuse_a_mistyped_address_before_any_work() -> None:
    for make in (
        lambda: TrainSettings(data=MISTYPED, model="/m"),
        lambda: DoctorSettings(output=MISTYPED),
    ):
        with pytest.raises(ValidationError, match="did you mean s3://bucket/x"):
            make()


@pytest.mark.parametrize(
    "call",
    [
        storage.read,
        storage.exists,
        storage.etag,
        lambda url: storage.put(url, b""),
        lambda url: storage.create(url, b""),
        lambda url: list(storage.list_objects(url)),
        storage.arrow_filesystem,
    ],
)
def test_storage_itself_takes_no_mistyped_address(
    call: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AddressError, match="did you mean"):
        call(MISTYPED)
    assert os.listdir(tmp_path) == []


def test_folding() -> None:
    assert folded("A/caf\u00e9") == folded("a/cafe\u0301")
    assert folded("Stra\u00dfe") == folded("STRASSE")
    assert folded("a") != folded("b")


# --- schemes that cannot be used by an address alone ---


@pytest.mark.parametrize(
    "url",
    [
        *("zip://a.zip", "tar://a.tar", "hdfs://host/x", "reference://x", "git://x", "github://x"),
        *("smb://host/x", "dir://x", "blockcache://x", "cached://x", "lakefs://x/y", "data://x"),
    ],
)
def test_other_schemes_are_refused_in_one_clear_line(url: str) -> None:
    with pytest.raises(AddressError) as caught:
        list(storage.list_objects(url))
    said = str(caught.value)
    assert "\n" not in said
    assert url.partition(":")[0] in said
    assert any(remedy in said for remedy in ("needs another package", "copy what is in it", "unknown scheme"))
