"""The plan made in SQL and Arrow is the plan that plain Python makes of the same listing and rows."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from uuid import uuid4

import pyarrow as pa
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.labeling.inventory import _all_left_aside
from segpipe.labeling.mask_keys import natural_key, natural_keys
from segpipe.labeling.plan import make_plan
from segpipe.listing import SIDECAR_EXTENSIONS, SIDECAR_NAMES
from segpipe.manifests.schema import ROW_SCHEMA, Row, rows_table
from segpipe.manifests.store import commit_part
from tests.support.alternative_names import alternative_key
from tests.support.planned import planned_table

MODEL = "0123456789ab"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
NAMES = st.sampled_from(
    [
        "a",
        "b.jpg",
        "c.png",
        "x.TXT",
        ".h",
        "masks",
        "__MACOSX",
        "@eaDir",
        "README",
        MODEL,
        "d e",
        "ü.jpg",
        "+.json",
        "a\n.jpg",
        "q.jpg.png",
        "~",
    ]
)
KEYS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
ROWS = st.sampled_from([None, "accepted", "unreadable", "storage", "older version"])


def left_aside(key: str) -> bool:
    """Written anew from the documented rules."""
    if any(part.startswith(".") and part not in (".", "..") for part in key.split("/")):
        return True
    if {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"} & {*key.split("/")}:
        return True
    if key.split("/")[-1].lower() in SIDECAR_NAMES:
        return True
    own = re.search(r"(?:^|/)(?:masks|confidence_maps)/[0-9a-f]{12}/.+\.png\Z", key, re.DOTALL)
    return bool(own) or PurePosixPath(key.split("/")[-1]).suffix.lower() in SIDECAR_EXTENSIONS


@settings(deadline=None, max_examples=60)
@given(keys=st.lists(KEYS | st.text(st.characters(codec="utf-8"), max_size=9), max_size=8))
@example(
    keys=["..", "a/..", "...", "a./b", "masks/0123456789ab/x.png", "x.jpg\n", "a.jpg/", "x" * 201, "K.jPG"]
)
def test_keys_are_judged_alike_one_by_one_and_all_at_once(keys: list[str]) -> None:
    column = pa.array(keys, pa.string())
    assert [reason is not None for reason in _all_left_aside(column).to_pylist()] == [*map(left_aside, keys)]
    assert natural_keys(pa.chunked_array([column])).to_pylist() == [*map(natural_key, keys)]


@settings(deadline=None, max_examples=20)
@given(objects=st.dictionaries(KEYS, ROWS, min_size=1, max_size=10), limit=st.none() | st.integers(1, 4))
def test_a_plan_holds_what_plain_python_finds(objects: dict[str, str | None], limit: int | None) -> None:
    assume(not any(other.startswith(f"{key}/") for key in objects for other in objects))  # file or folder
    root = f"memory://{uuid4().hex}"
    source, output = f"{root}/in", f"{root}/out"
    for key in [*objects, "always.jpg"]:
        storage.put(f"{source}/{key}", b"x")
    listed = {item.key: item for item in storage.list_objects(source)}
    rows = [row(listed[key], output, found) for key, found in objects.items() if found and key in listed]
    if rows:
        commit_part(output, NOW.date(), "r0", 0, rows_table(rows, ["dark"]))
    plan = make_plan(source, output, MODEL, None, LabelSettings(shard_images=100), "r1", NOW, limit)

    backlog = sorted(
        key for key in listed if not left_aside(key) and objects.get(key) not in ("accepted", "unreadable")
    )
    planned = planned_table(plan.images)
    assert planned["image_uri"].to_pylist() == [f"{source}/{key}" for key in backlog[:limit]]
    assert plan.already_done == sum(not left_aside(key) for key in listed) - len(backlog)
    taken = {str(made.mask_uri).partition(f"/masks/{MODEL}/")[2] for made in rows if made.mask_uri}
    for key, mask_key in zip(backlog[:limit], planned["mask_key"].to_pylist(), strict=True):
        assert mask_key in (natural_key(key), *alternatives(listed[key]))
        assert mask_key not in taken


def row(item: storage.StoredObject, output: str, found: str) -> Row:
    failed = found in ("unreadable", "storage")
    values = {
        "image_uri": item.uri,
        "image_etag": "old" if found == "older version" else item.etag,
        "mask_uri": None if failed else f"{output}/masks/{MODEL}/{natural_key(item.key) or 'odd~1.png'}",
        "decision": "failed" if failed else "accepted",
        "reason": found if failed else "confident",
        "model_id": MODEL,
        "labeled_at": NOW,
    }
    return Row(**dict.fromkeys(ROW_SCHEMA.names) | values)


def alternatives(item: storage.StoredObject) -> list[str]:
    return [alternative_key(item.key, item.uri, item.etag, digits) for digits in (8, 16, 64)]
