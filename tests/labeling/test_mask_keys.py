"""Whatever images are called, no two masks meet and none leaves its folder."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segpipe.labeling.mask_keys import (
    choose_mask_keys,
    define_names,
    natural_key,
    natural_keys,
    with_chosen,
)
from segpipe.manifests.duckdb_engine import connect
from tests.support.alternative_names import alternative_key


def assign(
    keys: list[str], taken: Sequence[str] = (), etags: list[str] | None = None, output: str = "s3://out"
) -> list[str]:
    images = pa.table(
        {
            "row": pa.array(range(len(keys)), pa.int64()),
            "stem": pa.array(keys, pa.string()),
            "image_uri": pa.array([f"s3://b/{key}" for key in keys], pa.string()),
            "image_etag": pa.array(etags or ["e"] * len(keys), pa.string()),
            "mask_key": natural_keys(pa.chunked_array([pa.array(keys, pa.string())])),
        }
    )
    with connect() as connection:
        define_names(connection, output)
        connection.register("taken", pa.table({"key": pa.array(taken, pa.string())}))
        connection.register("images", images)
        choose_mask_keys(connection)
        tables = (images.slice(first, 3) for first in range(0, len(keys), 3))
        return [key for table in with_chosen(connection, tables) for key in table["mask_key"].to_pylist()]


COMPONENTS = st.sampled_from(
    ["a", "a.png", "b", "b.png", "", ".", "..", "x" * 201, "ü", "a\n", " ", "?", "%2e"]
)
KEYS = st.lists(COMPONENTS, min_size=1, max_size=5).map("/".join)


@settings(deadline=None, max_examples=20)
@given(
    keys=st.lists(KEYS | st.text(st.characters(codec="utf-8"), max_size=8), unique=True, max_size=12),
    taken=st.lists(KEYS, unique=True, max_size=6),
)
@example(keys=["a", "a.png/b"], taken=[])
@example(keys=["a"], taken=["a.png/b.png"])
@example(keys=["a.png/b"], taken=["a.png"])
def test_masks_never_meet_never_nest_and_stay_below_their_folder(keys: list[str], taken: list[str]) -> None:
    taken = [key for name in taken if (key := natural_key(name))]
    assigned = assign(keys, taken)
    mine, others = [{f"/out/masks/m/{key}" for key in some} for some in (assigned, taken)]
    assert len(mine) == len(keys)
    assert not mine & others
    assert not mine & {folder for mask in mine | others for folder in ancestors(mask)}
    assert not others & {folder for mask in mine for folder in ancestors(mask)}
    for key in assigned:
        assert posixpath.normpath(f"/out/masks/m/{key}") == f"/out/masks/m/{key}"
        assert key.endswith(".png")
        assert max(len(part.encode()) for part in key.split("/")) <= 255
        assert len(key.encode()) <= 1024 - 200
        assert not any(ord(character) < 32 for character in key)


def ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


@pytest.mark.parametrize("key", ["a.jpg", "a b/ü?#%.jpg", "...", "a..b/c", "x" * 200, " ", "~", "a\\b", "::"])
def test_an_ordinary_key_keeps_its_own_name(key: str) -> None:
    assert assign([key]) == [f"{key}.png"]


@pytest.mark.parametrize(
    "key",
    [
        "../a.jpg",
        "a/../b",
        "./a",
        "a/.",
        "/a.jpg",
        "a//b",
        "a/",
        "",
        "x" * 201,
        "ü" * 101,
        "a/" * 400 + "b",
        "a\tb",
        "a?versionId=b.jpg",
    ],
)
def test_an_unsafe_key_gets_a_name_made_of_its_identity(key: str) -> None:
    digest = hashlib.sha256(f"s3://b/{key}\0e".encode()).hexdigest()
    (assigned,) = assign([key])
    assert assigned.endswith(f"~{digest[:8]}.png")
    assert "/" not in assigned


def test_the_alternative_keeps_a_readable_stem() -> None:
    digest = hashlib.sha256(b"s3://b/../bild \xc3\xbc.jpg\0e").hexdigest()[:8]
    assert assign(["../bild ü.jpg"]) == [f"bild_.jpg~{digest}.png"]


def test_a_taken_mask_is_left_alone_and_versions_of_an_image_differ() -> None:
    first, second = assign(["a.jpg"], ["a.jpg.png"], ["e1"]), assign(["a.jpg"], ["a.jpg.png"], ["e2"])
    assert "a.jpg.png" not in (*first, *second)
    assert first != second


def test_an_image_named_like_anothers_alternative_does_not_meet_it() -> None:
    occupied = alternative_key("../a", "s3://b/../a", "e")
    keys = ["../a", occupied.removesuffix(".png")]
    assert len(set(assign(keys))) == 2
    assert len({*assign(["../a"], [occupied]), occupied}) == 2


def test_names_do_not_depend_on_what_else_is_planned() -> None:
    assert assign(["x", "../a", "z"])[1] == assign(["../a"])[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A.png", "a.png"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("CAF\u00c9.jpg", "cafe\u0301.jpg"),
        ("Stra\u00dfe.jpg", "STRASSE.jpg"),
        ("\u03c3.jpg", "\u03c2.jpg"),
        ("\u212a.jpg", "k.jpg"),  # the sign of Kelvin
        ("Day/1.jpg", "day/1.jpg"),
    ],
)
def test_names_that_a_disk_may_take_for_one_share_no_mask_there(first: str, second: str) -> None:
    kept, other = assign([first, second], output="/out")
    assert kept == f"{first}.png"
    assert other == alternative_key(second, f"s3://b/{second}", "e")
    [late] = assign([second], taken=[f"{first}.png"], output="/out")
    assert late == other
    assert assign([first, second], output="s3://out") == [f"{first}.png", f"{second}.png"]


def test_a_mask_and_a_folder_that_a_disk_may_take_for_one_do_not_meet() -> None:
    kept, other = assign(["A", "a.PNG/b"], output="/out")
    assert (kept, other) == ("A.png", alternative_key("a.PNG/b", "s3://b/a.PNG/b", "e"))
    [late] = assign(["a"], taken=["A.PNG/b.png"], output="/out")
    assert late == alternative_key("a", "s3://b/a", "e")
